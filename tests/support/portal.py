"""A portal, as a test plays it."""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

Files = Mapping[str, bytes | str]


@dataclass(frozen=True)
class Answer:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def zip(self) -> zipfile.ZipFile:
        """The body as a zip."""
        return zipfile.ZipFile(io.BytesIO(self.body))


class Portal:
    """Talks to one server over HTTP."""

    def __init__(self, base: str | URL, session: aiohttp.ClientSession) -> None:
        self.base = str(base).rstrip("/")
        self.session = session

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        """Any request; redirects are not followed."""
        options.setdefault("allow_redirects", False)
        async with self.session.request(method, self.base + path, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        """GET."""
        return await self.request("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        """POST."""
        return await self.request("POST", path, **options)

    async def try_upload(
        self,
        files: Files,
        *,
        user_id: int | str | None = 1,
        service: str | None = "example",
        ref: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """POST /upload, whatever the answer."""
        form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
        for name, content in files.items():
            form.add_field("file", content.encode() if isinstance(content, str) else content,
                           filename=name)  # fmt: skip
        for field, value in (("user_id", user_id), ("service", service), ("ref", ref)):
            if value is not None:
                form.add_field(field, str(value))
        return await self.post("/upload", data=form, headers=headers)

    async def upload(self, files: Files | str, **options: Any) -> int:
        """Upload a job that is taken, and give its id; a text is its run.sh."""
        if isinstance(files, str):
            files = {"run.sh": files}
        answer = await self.try_upload(files, **options)
        assert answer.status == 201, answer
        id: int = answer.json["id"]
        return id

    async def job(self, id: int, **query: Any) -> dict[str, Any]:
        """The record of a job."""
        answer = await self.get(f"/jobs/{id}", params=query)
        assert answer.status == 200, answer
        record: dict[str, Any] = answer.json
        return record

    async def ended(self, id: int) -> dict[str, Any]:
        """The record of a job once it has ended."""
        while True:
            record = await self.job(id, wait=60)
            if record["status"] in ("Completed", "Failed", "Invalid", "Killed", "Cleaned"):
                return record

    async def reached(self, id: int, *statuses: str) -> dict[str, Any]:
        """The record of a job once it is in one of these states."""
        record = await self.job(id)
        while record["status"] not in statuses:
            record = await self.job(id, wait=60, seen=record["version"])
        return record

    async def result(self, id: int) -> zipfile.ZipFile:
        """The result of a Completed job."""
        answer = await self.get(f"/download/{id}")
        assert answer.status == 200, answer
        return answer.zip
