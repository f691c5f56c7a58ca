import json
import math

import optuna
import pytest

from search_support import small
from vae.errors import SearchError
from vae.search.storage import journal_path, open_journal, open_storage


def test_an_incomplete_last_record_is_cut_off_before_the_next_is_appended(here):
    trials = here.search(small(n_trials=1)).trials
    whole = journal_path().read_bytes()
    journal_path().write_bytes(whole + b'{"op_code": 4, "study')
    after = here.search(small(n_trials=2)).trials
    assert after[:1] == trials and len(after) == 2
    assert journal_path().read_bytes().startswith(whole + b'{"op_code"')
    for line in journal_path().read_text().splitlines():
        assert math.isfinite(json.loads(line)["op_code"])


def test_a_damaged_journal_is_refused_and_left_as_it_is(here):
    optuna.create_study(storage=open_journal()).ask()
    lines = journal_path().read_bytes().splitlines(keepends=True)
    for damage in (b"\x00\xff garbage\n", b'{"op_code": 99, "worker_id": "x"}\n', b"[]\n", b'{"op_code": 4}\n'):
        damaged = b"".join([*lines[:1], damage, *lines[1:]])
        journal_path().write_bytes(damaged)
        with pytest.raises(SearchError, match=r"search/study.journal is damaged") as caught:
            open_storage()
        assert len(str(caught.value).splitlines()) == 1
        assert journal_path().read_bytes() == damaged


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://user:secret@host:port/db", "is not a URL such as postgresql://"),
        ("oracle://a:secret@127.0.0.1/b", "can't be used"),
        ("postgresql://user:secret@127.0.0.1:1/optuna", r"postgresql://\S*@127.0.0.1:1/optuna can't be used"),
        ("postgresql://127.0.0.1:1/optuna?password=secret", "can't be used"),
        ("sqlite:////nowhere/at/all.db", "can't be used"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named_without_its_password(here, monkeypatch, url, reason):
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    with pytest.raises(SearchError, match=reason) as caught:
        open_storage()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and "OPTUNA_STORAGE" in message and "secret" not in message
