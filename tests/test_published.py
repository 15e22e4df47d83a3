import random

import pyarrow as pa
import pytest

from raypurify.published import encodable, escaped, published, redacted, unescaped


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at https://host/a?X-Amz-Signature=abc, then", "at https://host/a?… then"),
        ("https://user:word@host/a", "https://…@host/a"),
        ("https://user:w@rd@host/a and ftp://token@host", "https://…@host/a and ftp://…@host"),
        ("abfs://box/a?sig=x", "abfs://box/a?…"),
        ("s3://bucket/what?.png", "s3://bucket/what?.png"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://key:secret@bucket/a", "s3://…@bucket/a"),
        ("/a/file?name", "/a/file?name"),
        ("see https://host/a, or mail a@b.c", "see https://host/a, or mail a@b.c"),
    ],
)
def test_signed_queries_and_passwords_are_left_out(text: str, clean: str) -> None:
    assert redacted(text) == clean
    assert redacted(clean) == clean
    assert published({"a": [text], "n": 1, "none": None}) == {"a": [clean], "n": 1, "none": None}


@pytest.mark.parametrize("key", ["key", "password", "session_token", "secretAccessKey", "api-key"])
def test_values_of_keys_that_sound_like_a_secret_are_left_out(key: str) -> None:
    assert redacted({"storage": {key: "hidden"}, "keys": "shown"}) == {"storage": {key: "…"}, "keys": "shown"}


def test_names_that_are_no_utf8_can_be_stored_and_come_back() -> None:
    assert escaped("caf\udce9.png") == encodable("caf\udce9.png") == "caf\ufffdE9.png"
    assert encodable("half a pair \ud83d") == "half a pair \ufffdED\ufffdA0\ufffdBD"
    generator = random.Random(0)
    pieces = [b"a", b"E9", b"F", b"\xe9", b"\xc3", b"\xbf", b"\xff", "\ufffd".encode(), "é".encode(), b"%E9"]
    names = {b"".join(generator.choices(pieces, k=5)).decode("utf-8", "surrogateescape") for _ in range(2000)}
    texts = {escaped(name) for name in names}
    assert len(texts) == len(names)
    assert {unescaped(text) for text in texts} == names
    assert all(encodable(text) == text for text in texts)
    pa.array(sorted(texts), pa.string())
