"""How the name of a file is written and read: Content-Disposition, and which names are taken."""

import random

import pytest

from orchestrator_shared.errors import BadUpload
from orchestrator_shared.multipart import check_name, read_disposition, write_disposition

NASTY = [
    "plain.txt",
    " with  spaces ",
    "Übergröße.pdb",
    "日本語.txt",
    "🧬.fa",
    'a"b',
    '"',
    '""',
    "a\\",
    "\\",
    "\\\\",
    '\\"',
    'a\\"b"\\',
    "\\n",
    "a;b",
    "; filename=other",
    '"; filename="other',
    "-rf",
    "--boundary",
    "a%20b",
    "%",
    "%2",
    "%22",
    "%0D%0A",
    "%0d",
    "100%22%20",
    'half %22 "quoted"',
    "a=b",
    "a'b''c",
    "utf-8''a",
    "*",
    "x" * 255,
    '"' * 255,
    "ü" * 127,
    "a\u2028b",
    "\u00a0",
    "~",
    ",",
    "a:b",
    "C:\\x",
]


def _seeded() -> list[str]:
    chance = random.Random(2024)
    alphabet = ['"', "\\", "%", "2", "0", "D", "A", "d", ";", "'", " ", "=", "ä", "*", "x"]
    return ["".join(chance.choices(alphabet, k=chance.randint(1, 40))) for _ in range(2000)]


@pytest.mark.parametrize("name", NASTY)
def test_a_written_name_is_read_back(name: str) -> None:
    """What write_disposition writes, read_disposition gives back unchanged."""
    assert read_disposition(write_disposition(name).encode())["filename"] == name


def test_any_written_name_is_read_back() -> None:
    """So is each of many names made of what has a meaning in a header."""
    for name in _seeded():
        found = read_disposition(write_disposition(name).encode())
        assert found["filename"] == name
        assert found["name"] == "file"


@pytest.mark.parametrize("name", NASTY)
def test_a_written_header_is_one_line(name: str) -> None:
    """No name can begin another header."""
    assert not set("\r\n") & set(write_disposition(name))


@pytest.mark.parametrize(
    ("header", "filename"),
    [
        (b'form-data; name="file"; filename="a b.txt"', "a b.txt"),
        (b'form-data; name="file"; filename="a;b.txt"', "a;b.txt"),
        (b'form-data; name="file"; filename=bare.txt', "bare.txt"),
        (b"form-data;name=file;filename=tight", "tight"),
        (b'form-data ; name = "file" ; filename = "wide"', "wide"),
        (b'form-data; name="file"; FileName="case"', "case"),
        (b'form-data; filename="first"; name="file"', "first"),
        # curl with --form-escape
        (b'form-data; name="file"; filename="a\\"b"', 'a"b'),
        (b'form-data; name="file"; filename="a\\\\b"', "a\\b"),
        # browsers
        (b'form-data; name="file"; filename="a%22b"', 'a"b'),
        (b'form-data; name="file"; filename="a%20b%2Fc"', "a%20b%2Fc"),
        (b'form-data; name="file"; filename="a\\b"', "a\\b"),
        (b'form-data; name="file"; filename="\xc3\xbc"', "ü"),
        # RFC 8187
        (b"form-data; name=file; filename*=utf-8''a%20%C3%BC", "a ü"),
        (b"form-data; name=file; filename*=UTF-8'de'%22", '"'),
        (b"form-data; name=file; filename*=utf-8''it%27s''two", "it's''two"),
        # The plain one counts, wherever it stands.
        (b"form-data; name=file; filename*=utf-8''star; filename=\"plain\"", "plain"),
        (b"form-data; name=file; filename=\"plain\"; filename*=utf-8''star", "plain"),
        (b'form-data; name="file"; filename=""', ""),
    ],
)
def test_a_name_is_read_as_it_was_meant(header: bytes, filename: str) -> None:
    """Of a plain name only quotes and line ends are decoded, of filename* everything."""
    assert read_disposition(header)["filename"] == filename


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b'form-data; name="user_id"', {"name": "user_id"}),
        (b"form-data", {}),
        (b"", {}),
        (b'form-data; name="x; filename=evil"', {"name": "x; filename=evil"}),
        (b'form-data; name="a\\"; filename=\\"evil"', {"name": 'a"; filename="evil'}),
        (b'form-data; name="%22"', {"name": "%22"}),
    ],
)
def test_a_part_without_a_file_name_is_none(header: bytes, found: dict[str, str]) -> None:
    """A field stays a field, whatever its name looks like."""
    assert read_disposition(header) == found


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("run.sh", "run.sh"),
        ("a/b/run.sh", "run.sh"),
        ("../../etc/passwd", "passwd"),
        ("/absolute", "absolute"),
        ("C:\\fakepath\\x.txt", "C:\\fakepath\\x.txt"),
        ("-rf", "-rf"),
        ("...", "..."),
        (".hidden", ".hidden"),
        (".orchestrator2", ".orchestrator2"),
        (" ", " "),
        ("x" * 255, "x" * 255),
        ("ü" * 127 + "x", "ü" * 127 + "x"),
        ("bad\n/good", "good"),
        ("x" * 300 + "/good", "good"),
    ],
)
def test_a_usable_name_is_the_part_after_the_last_slash(text: str, name: str) -> None:
    """Anything that can be a file in a working directory is taken as it is."""
    assert check_name(text) == name


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1 to 255 bytes"),
        ("folder/", "1 to 255 bytes"),
        ("/", "1 to 255 bytes"),
        ("x" * 256, "1 to 255 bytes"),
        ("ü" * 128, "1 to 255 bytes"),
        (".", "cannot be named '.'"),
        ("..", "cannot be named '..'"),
        ("a/..", "cannot be named '..'"),
        (".orchestrator", "cannot be named '.orchestrator'"),
        ("x/.orchestrator", "cannot be named '.orchestrator'"),
        ("a\nb", "control characters"),
        ("a\rb", "control characters"),
        ("a\tb", "control characters"),
        ("a\0b", "control characters"),
        ("\x1b[31m", "control characters"),
        ("a\x1fb", "control characters"),
        ("a\x7fb", "control characters"),
        ("a\x85b", "control characters"),
        ("\udcff", "not UTF-8"),
        ("\ud800", "not UTF-8"),
    ],
)
def test_an_unusable_name_is_refused(text: str, problem: str) -> None:
    """The refusal says what is wrong with it."""
    with pytest.raises(BadUpload, match=problem.replace(".", r"\.")) as refused:
        check_name(text)
    str(refused.value).encode()
