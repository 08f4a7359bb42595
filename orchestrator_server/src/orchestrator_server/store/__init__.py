"""2, queue: jobs and their files on disk, and every change of their states."""
