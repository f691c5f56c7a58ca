import pytest

from vae.errors import hide_passwords, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@host:5000/path", "http://***@host:5000/path"),
        ("postgresql+psycopg://user:se/cr:et@ret@host/db", "postgresql+psycopg://***@host/db"),
        ("postgresql://host/db?user=u&password=secret&x=1", "postgresql://host/db?user=u&password=***&x=1"),
        ("https://mirror/file?X-Amz-Signature=secret", "https://mirror/file?X-Amz-Signature=***"),
        ("http://u:secret@a:1/x failed, http://b/y too", "http://***@a:1/x failed, http://b/y too"),
        ("http://localhost:5000/#/experiments/1?tab=runs", "http://localhost:5000/#/experiments/1?tab=runs"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_passwords_in_urls_are_hidden(text, shown):
    assert hide_passwords(text) == shown


def test_an_error_becomes_one_short_line_without_sql_and_passwords():
    error = OSError("connection to\n  postgresql://u:secret@h/d failed [SQL: SELECT 1]" + "x" * 1000)
    assert one_line(error) == "connection to postgresql://***@h/d failed"
    assert len(one_line(ValueError("y" * 1000))) == 300
