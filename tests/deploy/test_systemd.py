"""The units on a real systemd: installed by the commands of docs/deploying.md."""

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from deploy.machine import (
    CHECKOUT,
    REPOSITORY,
    CurlPortal,
    Machine,
    machine,
    set_version,
    wait_until,
)

pytestmark = pytest.mark.deploy

UNITS: Final = ("orch-server.service", "orch-client@.service")
CLIENT: Final = "orch-client@example"
CLIENT_URL: Final = "http://127.0.0.1:9000"
ETC: Final = "/etc/job-orchestrator"
#: Where jobs of the client have their /tmp.
JOBS_TMP: Final = "/var/cache/orch-client/example"
#: The address of a machine that is neither the server nor this one.
ELSEWHERE: Final = "10.9.9.9"


@pytest.fixture(scope="module")
def site(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which both programs are installed and run."""
    with machine(tmp_path_factory.mktemp("machine"), parts) as fresh:
        install(fresh)
        fresh.run("cp", "deploy/systemd/client.env", f"{ETC}/client-example.env")
        fresh.run("systemctl", "enable", "--now", "orch-server", CLIENT)
        wait_for_client(fresh)
        yield fresh


@pytest.fixture
def portal(site: Machine) -> CurlPortal:
    """A portal on that machine."""
    return CurlPortal(site)


def install(site: Machine) -> None:
    """Install what the checkout has, from what pip finds on the machine."""
    said = site.run("deploy/systemd/install", PIP_NO_INDEX="1", PIP_FIND_LINKS="/wheels")
    assert "/opt/job-orchestrator/current is " in said


def wait_for_client(site: Machine, url: str = CLIENT_URL) -> None:
    """Wait until the server has a client."""

    def up() -> bool:
        said = site.run("orch-server", "client", "list", check=False)
        return re.search(rf"^{url} .* up ", said, re.M) is not None

    wait_until(up, f"{url} is up")


class Held:
    """A job that runs until the test lets go of it."""

    def __init__(self, site: Machine, portal: CurlPortal) -> None:
        name = f"held-{secrets.token_hex(4)}"
        self._site, self._portal, self._file = site, portal, f"{JOBS_TMP}/{name}"
        #: The file that lets it go.
        self.release = self._file + ".go"
        self.id = portal.upload(
            f"echo $$ >/tmp/{name}\n"
            f"until [[ -e /tmp/{name}.go ]]; do sleep 0.1; done\n"
            f"echo from $(cat /tmp/{name})\n"
        )
        portal.reached(self.id, "Running")
        wait_until(lambda: site.run("cat", self._file, check=False).strip().isdigit(), "it runs")
        self.pid = site.run("cat", self._file).strip()

    def assert_runs(self) -> None:
        """It is still the process that it was."""
        assert self._site.run("cat", f"/proc/{self.pid}/cmdline") == "bash\0run.sh\0"

    def assert_ends_once(self) -> None:
        """Let it go: its first attempt ends, and with it the job."""
        self.assert_runs()
        self._site.run("touch", self.release)
        record = self._portal.reached(self.id, "Completed", "Failed", "Killed")
        assert (record["status"], record["attempt"]) == ("Completed", 1), record
        said = self._portal.file(self.id, ".orchestrator/stdout.log")
        assert said == f"from {self.pid}\n"


def main_pid(site: Machine, unit: str) -> str:
    """The main process of a unit that runs."""
    wait_until(lambda: site.show(unit, "ActiveState") == "active", f"{unit} is active")
    return site.show(unit, "MainPID")


def test_verify_is_clean(site: Machine) -> None:
    """Where the programs are installed systemd finds no fault in the units."""
    assert site.run("systemd-analyze", "verify", "orch-server.service", CLIENT + ".service") == ""


@pytest.mark.parametrize(("unit", "most"), [(UNITS[0], 3.0), (UNITS[1], 5.0)])
def test_exposure_is_low(site: Machine, unit: str, most: float) -> None:
    """How much a unit may do, as systemd counts it."""
    path = str(CHECKOUT / "deploy/systemd" / unit)
    said = site.run("systemd-analyze", "security", "--offline=true", "--no-pager", path)
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert exposure is not None, said
    assert float(exposure[1]) <= most, said


def test_the_token_keeps_others_out(site: Machine) -> None:
    """Only root can read it, and without it a client answers nothing but its health."""
    assert site.run("stat", "-c", "%a %U", f"{ETC}/client-token") == "600 root\n"

    def code(path: str, *options: str) -> str:
        return site.run(
            *("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *options, CLIENT_URL + path)
        )

    assert code("/load") == "401"
    assert code("/submit", "-F", "file=@/etc/hostname") == "401"
    assert code("/health") == "200"
    token = site.run("cat", f"{ETC}/client-token").strip()
    assert code("/load", "-H", f"Authorization: Bearer {token}") == "200"


def test_jobs_run_on_over_a_restart(site: Machine, portal: CurlPortal) -> None:
    """The client is restarted in the middle of a job, which keeps even what it has in /tmp."""
    job = Held(site, portal)
    before = main_pid(site, CLIENT)
    site.run("systemctl", "restart", CLIENT)
    assert main_pid(site, CLIENT) != before
    wait_for_client(site)
    job.assert_ends_once()


def test_jobs_run_on_over_a_stop(site: Machine, portal: CurlPortal) -> None:
    """A job ends while there is no client, and the next one finds out how."""
    job = Held(site, portal)
    site.run("systemctl", "stop", CLIENT)
    job.assert_runs()
    site.run("systemctl", "start", CLIENT)
    wait_for_client(site)
    job.assert_ends_once()


def test_a_killed_client_comes_back(site: Machine, portal: CurlPortal) -> None:
    """systemd starts it again, and it takes up what runs."""
    job = Held(site, portal)
    before = main_pid(site, CLIENT)
    restarts = int(site.show(CLIENT, "NRestarts"))
    site.run("systemctl", "kill", "-s", "KILL", "--kill-whom=main", CLIENT)
    wait_until(lambda: int(site.show(CLIENT, "NRestarts")) > restarts, "it is started again")
    assert main_pid(site, CLIENT) != before
    wait_for_client(site)
    job.assert_ends_once()


def test_a_killed_server_comes_back(site: Machine, portal: CurlPortal) -> None:
    """With every job that it had."""
    job = Held(site, portal)
    restarts = int(site.show("orch-server", "NRestarts"))
    site.run("systemctl", "kill", "-s", "KILL", "orch-server")
    wait_until(lambda: int(site.show("orch-server", "NRestarts")) > restarts, "started again")
    wait_for_client(site)
    job.assert_ends_once()


def test_jobs_run_on_over_an_upgrade(site: Machine, portal: CurlPortal) -> None:
    """Another version is installed, both are restarted, and then the former one again."""
    former = site.run("readlink", "/opt/job-orchestrator/current").strip()
    checkout = site.binds[CHECKOUT]
    version = set_version(checkout, "0.99.0")
    job = Held(site, portal)
    try:
        install(site)
        assert portal.get("/health")["version"] == version
        site.run("systemctl", "restart", "orch-server", CLIENT)
        wait_for_client(site)
        assert portal.get("/health")["version"] == "0.99.0"
        assert " 0.99.0 " in site.run("orch-server", "client", "list")
        job.assert_runs()
    finally:
        set_version(checkout, version)
        site.run("ln", "-sfn", former, "/opt/job-orchestrator/current")
        site.run("systemctl", "restart", "orch-server", CLIENT)
    wait_for_client(site)
    assert portal.get("/health")["version"] == version
    job.assert_ends_once()


@pytest.mark.parametrize(("unit", "port"), [("orch-server", 5000), (CLIENT, 9000)])
def test_a_start_has_succeeded_once_it_listens(site: Machine, unit: str, port: int) -> None:
    """Whoever waits for the start finds the program there."""
    site.run("systemctl", "restart", unit)
    site.run("curl", "-sS", "-o", "/dev/null", f"http://127.0.0.1:{port}/health")


def test_a_wrong_setting_is_said_once(site: Machine) -> None:
    """The unit has failed, with one line that names the setting, and is not started again."""
    site.write(f"{ETC}/client-wrong.env", "PORT=9009\nSLOTS=two\n")
    wrong = "orch-client@wrong"
    said = site.run("systemctl", "start", wrong, check=False)
    assert f"Job for {wrong}.service failed" in said
    assert site.show(wrong, "SubState") == "failed"
    assert (site.show(wrong, "ExecMainStatus"), site.show(wrong, "NRestarts")) == ("2", "0")
    assert site.journal(wrong) == ["orch-client: SLOTS: 'two' is not a whole number"]
    site.run("systemctl", "reset-failed", wrong)


def test_a_misspelt_service_is_not_started(site: Machine) -> None:
    """Without settings of its own there is no client."""
    said = site.run("systemctl", "start", "orch-client@exmaple", check=False)
    assert "Assertion failed" in said, said


def test_a_second_service_on_the_machine(site: Machine, portal: CurlPortal) -> None:
    """It has a client of its own, which sees nothing of the other."""
    settings = site.run("cat", f"{ETC}/server.env")
    site.write(f"{ETC}/client-second.env", "PORT=9001\nSLOTS=1\n")
    site.write(f"{ETC}/server.env", settings + "\nSERVICE_SECOND_URL=http://127.0.0.1:9001\n")
    try:
        site.run("systemctl", "start", "orch-client@second")
        site.run("systemctl", "restart", "orch-server")
        wait_for_client(site, "http://127.0.0.1:9001")
        job = portal.upload("ls -1 /var/lib/orch-client; ls -1A /tmp", service="second")
        assert portal.reached(job, "Completed", "Failed")["client"] == "http://127.0.0.1:9001"
        assert portal.file(job, ".orchestrator/stdout.log") == "second\n"
    finally:
        site.run("systemctl", "stop", "orch-client@second")
        site.write(f"{ETC}/server.env", settings)
        site.run("systemctl", "restart", "orch-server")
    wait_for_client(site)


def test_what_a_job_can_reach(site: Machine, portal: CurlPortal) -> None:
    """It writes to its own folders only, and calls no other machine."""
    site.run("ip", "address", "add", ELSEWHERE + "/32", "dev", "lo")
    web = ("python3", "-m", "http.server", "--bind", ELSEWHERE, "8000")
    site.run("systemd-run", "--unit=elsewhere", *web)
    url = f"http://{ELSEWHERE}:8000/"
    wait_until(lambda: site.run("curl", "-sSI", url, check=False).startswith("HTTP"), "it serves")
    site.run("install", "-d", "-m", "1777", "/srv/all")
    job = portal.upload(
        "try() { if \"$@\" >/dev/null 2>&1; then echo yes; else echo no; fi; }\n"
        "try touch here /tmp/here /var/tmp/here /dev/shm/here \"$HOME\"/here \"$TMPDIR\"/here\n"
        "for folder in /etc /opt /opt/job-orchestrator/current/bin /usr /var/lib /srv/all /; do\n"
        "    try touch $folder/here\n"
        "done\n"
        "for secret in /etc/job-orchestrator/client-token /var/lib/orch-server /root; do\n"
        "    try ls $secret/; try cat $secret\n"
        "done\n"
        f"try curl -m 5 {url}; try unshare -r true; try curl http://127.0.0.1:5000/live\n"
        "grep -h -e NoNewPrivs -e CapBnd /proc/self/status\n"
    )  # fmt: skip
    assert portal.reached(job, "Completed", "Failed")["status"] == "Completed"
    said = portal.file(job, ".orchestrator/stdout.log").split("\n")
    assert said[0] == "yes"
    assert said[1:16] == ["no"] * 15
    assert said[16:] == ["yes", "CapBnd:\t" + 16 * "0", "NoNewPrivs:\t1", ""]
    site.run("systemctl", "stop", "elsewhere")


def test_taking_the_machine_down(site: Machine, portal: CurlPortal) -> None:
    """A drained client ends what it runs; after that and a new start of the machine all is back."""
    job = Held(site, portal)
    assert "1 jobs are there yet" in site.run("orch-server", "client", "drain", CLIENT_URL)
    job.assert_ends_once()
    site.run("orch-server", "client", "resume", CLIENT_URL)
    lost = Held(site, portal)
    site.power_off()
    site.boot()
    wait_for_client(site)
    # What had run at the moment of the power off is run again.
    wait_until(lambda: portal.job(lost.id)["attempt"] == 2, "the second attempt")
    site.run("touch", lost.release)
    assert portal.reached(lost.id, "Completed", "Failed")["status"] == "Completed"


def test_the_repository_stays_as_it_is(site: Machine) -> None:
    """An installation leaves nothing in the checkout."""
    checkout = site.binds[CHECKOUT]
    new = {path.relative_to(checkout) for path in checkout.rglob("*") if path.is_file()}
    assert [path for path in new if not (REPOSITORY / path).is_file()] == []
    assert Path("deploy/systemd/install") in new
