"""orch-server: takes jobs from portals, queues them fairly, and hands them to clients."""
