"""Certificates: a cluster with some, those who have none or others, and their replacement while it runs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from cluster import free_addrs, leader_of, nodes_in_one_loop, quick_config
from processes import run_command
from stores import KeyValue

from raftify_ffi import Config, InvalidConfig, Raft, RaftServiceClient, TlsConfig, TlsError


async def test_members_clients_and_joiners_with_certificates(tmp_path: Path) -> None:
    ca = Authority(tmp_path / "ca")
    async with nodes_in_one_loop(tmp_path, 3, KeyValue, tls=ca.issue("nodes")) as rafts:
        for number, raft in enumerate(rafts):
            await raft.propose(b"k=%d" % number)
        assert await rafts[0].read(lambda store: store.data) == {"k": "2"}
        seeds = [raft.addr for raft in rafts]
        async with RaftServiceClient.connect(*seeds, tls=ca.issue("client", "somebody.example")) as client:
            await client.propose(b"c=1")
        client = await RaftServiceClient.build(seeds[1], tls=ca.issue("client", "somebody.example"))
        assert json.loads(await client.get_peers())["peers"].keys() == {"1", "2", "3"}
        await client.close()
        fourth, fifth = free_addrs(2)
        tls = ca.issue("node-4")
        ticket = await Raft.request_id(fourth, seeds[0], tls=tls)
        async with Raft.build(ticket.reserved_id, fourth, KeyValue(), quick_config(tmp_path, tls=tls)) as raft:
            await raft.join(ticket)
            assert await raft.read(lambda store: store.data) == {"k": "2", "c": "1"}
            joined = await Raft.join_cluster(
                fifth, KeyValue(), quick_config(tmp_path, tls=ca.issue("node-5")), seeds=seeds
            )
            await joined.close()


async def test_who_has_no_good_certificate_gets_nothing_and_is_told_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    async with nodes_in_one_loop(tmp_path, 3, KeyValue, tls=ca.issue("nodes")) as rafts:
        addrs = [raft.addr for raft in rafts]
        plain = "wants TLS; give this side tls_cert"
        distrusted = "is not signed by a CA in tls_ca"
        refused = "does not take this side's certificate"
        mixed = other.issue("mixed", believes=[ca])
        for tls, reason in [(None, plain), (other.issue("client"), distrusted), (mixed, refused)]:
            async with RaftServiceClient.connect(*addrs, tls=tls) as client:
                with pytest.raises(TlsError, match=reason) as caught:
                    await client.propose(b"x=1", timeout=None)
                assert (caught.value.committed, caught.value.retryable) == (False, False)
            with pytest.raises(TlsError, match=reason):
                await Raft.request_id(addrs[0], tls=tls)
        ticket = await Raft.request_id(addrs[0], tls=ca.issue("client"))
        addr = free_addrs(1)[0]
        # Its own CA takes its certificate, theirs does not.
        stranger = other.issue("stranger", believes=[ca, other])
        with caplog.at_level(logging.WARNING, logger="raftify"):
            async with Raft.build(ticket.reserved_id, addr, KeyValue(), quick_config(tmp_path, tls=stranger)) as raft:
                with pytest.raises(TlsError, match=refused):
                    await raft.join(ticket)
        assert any("was turned away: its certificate is not signed by a CA" in line for line in caplog.messages)
        # HTTP/2 is spoken by whoever shows a certificate, and by nobody else.
        context = ssl.create_default_context(cafile=os.fspath(ca.issue("client").ca))
        host, _, port = addrs[0].partition(":")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            if not await reader.read(100):
                raise ConnectionResetError
        await rafts[0].propose(b"y=1")
        assert await rafts[1].read(lambda store: store.data) == {"y": "1"}


async def test_certificates_and_their_ca_are_replaced_while_the_cluster_works(tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "files"), Authority(tmp_path / "files")
    peers = dict(enumerate(free_addrs(3), start=1))

    def node(id_: int) -> Raft[Any]:
        cert, key, ca = (tmp_path / "files" / f"node-{id_}-{kind}.pem" for kind in ("cert", "key", "ca"))
        tls = TlsConfig(cert, key, ca)
        return Raft.build(id_, peers[id_], KeyValue(), quick_config(tmp_path, tls=tls), peers)

    for id_ in peers:
        old.issue(f"node-{id_}")
    rafts = {id_: node(id_) for id_ in peers}
    for raft in rafts.values():
        await raft.__aenter__()
    try:
        # Both CAs are believed; then all show the new one's; then it alone is believed.
        for step, (issuer, believed) in enumerate([(old, [old, new]), (new, [old, new]), (new, [new])]):
            for id_ in peers:
                issuer.issue(f"node-{id_}", believes=believed)
            # One node anew: all its connections are made with what the files hold now, and the others take them. A look at the files may
            # be a second old: then it is refused at first, and dials again.
            again = step + 1
            await rafts[again].close()
            rafts[again] = node(again)
            await rafts[again].__aenter__()
            await (await leader_of(list(rafts.values()))).propose(b"step=%d" % step)
            assert (await rafts[again].read(lambda store: store.data))["step"] == str(step)
        # The old CA is believed by none of them any more, once each has looked.
        late = old.issue("late", believes=[old, new])
        with pytest.raises(TlsError, match="does not take this side's certificate"):
            while True:
                async with RaftServiceClient.connect(*peers.values(), tls=late) as client:
                    await client.propose(b"late=1")
    finally:
        for raft in rafts.values():
            await raft.close()


async def test_a_file_that_cannot_be_used_is_named_before_anything_is_made(tmp_path: Path) -> None:
    ca, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    good = ca.issue("good")
    cases = [
        (dataclasses.replace(good, cert=tmp_path / "none.pem"), "tls_cert: .*none.pem: cannot be read"),
        (dataclasses.replace(good, key=ca.issue("second").key), "tls_key: .* is not the key of the certificate"),
        (dataclasses.replace(good, ca=other.issue("third").ca), "tls_cert: .* is not signed by a CA in tls_ca"),
        (ca.issue("elsewhere", "a.example"), "tls_cert: .*a.example.*, not 127.0.0.1"),
    ]
    for tls, says in cases:
        raft = Raft.build(1, free_addrs(1)[0], KeyValue(), quick_config(tmp_path / "logs", tls=tls))
        with pytest.raises(TlsError, match=says):
            await raft.run()
    assert not (tmp_path / "logs").exists()
    named = dataclasses.replace(ca.issue("named", "nodes.example"), server_name="nodes.example")
    async with Raft.build(1, free_addrs(1)[0], KeyValue(), quick_config(tmp_path / "logs", tls=named)) as raft:
        await raft.wait_for(leader=True, timeout=60)
        async with RaftServiceClient.connect(raft.addr, tls=named) as client:
            await client.propose(b"a=1")


def test_tls_in_a_file_is_as_in_the_program(tmp_path: Path) -> None:
    pytest.importorskip("tomllib")
    path = tmp_path / "node.toml"
    path.write_text('[tls]\ncert = "c.pem"\nkey = "k.pem"\nca = "ca.pem"\n')
    assert Config.from_toml(path) == Config(tls=TlsConfig("c.pem", "k.pem", "ca.pem"))
    for text, field in [
        ('[tls]\ncert = "c.pem"\nkey = "k.pem"\n', "tls.ca"),
        ('[tls]\ncert = "c.pem"\nkey = 5\nca = "ca.pem"\n', "tls.key"),
        ('[tls]\ncertificate = "c.pem"\n', "tls.certificate"),
        ("tls = true\n", "tls"),
    ]:
        path.write_text(text)
        with pytest.raises(InvalidConfig) as caught:
            Config.from_toml(path)
        assert caught.value.field == field
    with pytest.raises(InvalidConfig, match="neither a host name"):
        Config(tls=TlsConfig("c", "k", "ca", server_name="a b"))


async def test_the_command_line_takes_certificates(tmp_path: Path) -> None:
    ca = Authority(tmp_path / "ca")
    tls = ca.issue("operator", "operator.example")
    flags = ["--tls-cert", str(tls.cert), "--tls-key", str(tls.key), "--tls-ca", str(tls.ca)]
    named = {"RAFTIFY_TLS_CERT": str(tls.cert), "RAFTIFY_TLS_KEY": str(tls.key), "RAFTIFY_TLS_CA": str(tls.ca)}
    program = [sys.executable, "-m", "raftify_ffi.cli"]

    async def cli(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
        done = await asyncio.to_thread(
            run_command, [*program, *arguments], tmp_path, {**os.environ, **(environment or {})}
        )
        return done.returncode, done.stdout, done.stderr

    async with nodes_in_one_loop(tmp_path, 3, KeyValue, tls=ca.issue("nodes")) as rafts:
        addr = rafts[0].addr
        assert (await cli(*flags, "propose", addr, "--data", "a=1"))[0] == 0
        code, out, error = await cli(*flags, "propose", addr, "--data", "a=2")
        assert (code, json.loads(out), error) == (0, {"result": "1"}, "")
        code, out, _ = await cli("status", addr, environment=named)
        assert code == 0
        assert len(json.loads(out)["nodes"]) == 3
        code, _, error = await cli("debug", "node", addr)
        assert (code, "wants TLS" in error) == (3, True), error
        code, _, error = await cli(*flags[:4], "debug", "node", addr)
        assert (code, "--tls-ca is missing" in error) == (2, True), error
        code, _, error = await cli(*flags[:-1], str(tmp_path / "none.pem"), "debug", "node", addr)
        assert (code, "none.pem: cannot be read" in error) == (3, True), error
