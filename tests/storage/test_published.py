import random

import pyarrow as pa
import pytest

from raypurify.storage.published import (
    encodable,
    escaped,
    identified,
    link,
    published,
    redacted,
    short_hash,
    unescaped,
    unsigned,
)


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
        ("https://host/it's my photo.png?sig=abc", "https://host/it's my photo.png?…"),
        ("https://host/a?of=you and me&sig=abc", "https://host/a?…"),
        ("https://host/a?b&c=1 and https://host/d?e&f=1 clash", "https://host/a?… and https://host/d?… clash"),
        ("https://user:it's@host/a", "https://…@host/a"),
        ("s3://bucket/crawl/http://host/a?id=1.png", "s3://bucket/crawl/http://host/a?id=1.png"),
        ("s3://bucket/a is no https://host/b?sig=abc", "s3://bucket/a is no https://host/b?…"),
        ("a://" * 500_000, "a://" * 500_000),
    ],
)
def test_signed_queries_and_passwords_are_left_out(text: str, clean: str) -> None:
    assert redacted(text) == clean
    assert redacted(clean) == clean
    assert published({"a": [text], "n": 1, "none": None}) == {"a": [clean], "n": 1, "none": None}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ('https://host/it\'s "a".png?sig=abc def', 'https://host/it\'s "a".png?…'),
        ("https://user:a b@host/a", "https://…@host/a"),
        ("s3://key:secret@bucket/a?b", "s3://…@bucket/a?b"),
        ("s3://bucket/crawl/http://me@host/a?1.png", "s3://bucket/crawl/http://me@host/a?1.png"),
        ("/a/b@c/d?e", "/a/b@c/d?e"),
    ],
)
def test_a_url_by_itself_is_hidden_to_its_end_and_a_name_stays(url: str, shown: str) -> None:
    name = "crawl/http://me@host/a?1.png"
    assert link(url) == link(shown) == shown
    assert published({"id": name, "source": url, "output": url, "url": url}) == {
        "id": name,
        "source": shown,
        "output": shown,
        "url": shown,
    }


@pytest.mark.parametrize(
    ("query", "rest"),
    [
        ("id=1&size=2", "id=1&size=2"),
        ("X-Amz-Date=1&id=1&X-Amz-Signature=2&X-Amz-Credential=3", "id=1"),
        ("Expires=1&Signature=2&Key-Pair-Id=3", ""),
        ("AWSAccessKeyId=1&Expires=2&GoogleAccessId=3&x-goog-signature=4", ""),
        ("sv=1&se=2&sp=r&sig=3&st=4", ""),
        ("se=2&st=4", "se=2&st=4"),
        ("page=3&token=1&access_token=2&apikey=3", "page=3"),
        ("q-sign-algorithm=1&q-ak=2&q=cats", "q=cats"),
    ],
)
def test_a_query_leaves_a_hash_of_what_is_no_signature(query: str, rest: str) -> None:
    assert unsigned(query) == rest
    hidden = f"https://host/a?…~{short_hash(rest)}" if rest else "https://host/a?…"
    identity = {"input": f"https://host/a?{query}", "output": "s3://bucket/a?id=1"}
    assert identified(identity) == identified(identified(identity)) == {**identity, "input": hidden}
    assert redacted(identified(identity))["input"] == "https://host/a?…"


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
