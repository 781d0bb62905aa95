"""The owner of a replica, note by note: one start for many, stale news, no hold lost, every phase accounted for."""

import asyncio
import contextlib
import time

import pytest
from fake_start import stage_in

from freehold.errors import EngineFailed, NotReady
from freehold.fleet.replica import _Note
from freehold.fleet.upstream import Answer, Upstream


async def test_many_who_want_it_wake_it_once(tmp_path):
    async with stage_in(tmp_path) as stage:
        calls = [stage.call() for _ in range(100)]
        await stage.waiting(100)
        stage.start.come_up()
        holds = await asyncio.gather(*calls)
        assert {hold.run for hold in holds} == {1}
        assert stage.start.runs == [1]
        assert stage.replica.status().in_flight == 100
        for hold in holds:
            stage.route.release(hold, served=True)
        assert stage.replica.status().in_flight == 0


async def test_news_of_an_old_run_changes_nothing(tmp_path):
    async with stage_in(tmp_path) as stage:
        stage.route.release(await stage.ready(), served=True)
        stage.start.end()
        await stage.told("replica.starting")  # the second run
        stage.replica._inbox.put_nowait(_Note("up", 1))
        await stage.read()
        assert stage.state == "starting"
        stage.start.come_up()
        await stage.told("replica.ready")
        for happening in ("exited", "failed", "idle", "stopped", "stop", "due"):
            stage.replica._inbox.put_nowait(_Note(happening, 1))
        await stage.read()
        assert (stage.state, stage.start.runs, stage.start.torn_down) == ("ready", [1, 2], [1])


async def test_the_end_of_an_old_backoff_does_not_shorten_the_next(tmp_path):
    async with stage_in(tmp_path) as stage:
        for number in (1, 2):
            calling = stage.call()
            await stage.told("replica.starting")
            stage.start.fail(NotReady("no"))
            with pytest.raises(NotReady):
                await calling
            if number == 1:
                await stage.told("replica.cold")  # after one failure there is nothing to wait for
        waiter = stage.call()
        await stage.waiting(1)
        stage.replica._inbox.put_nowait(_Note("due", 1))
        await stage.read()
        assert (stage.state, stage.start.runs) == ("backoff", [1, 2])
        waiter.cancel()


async def test_a_new_run_has_all_its_slots_and_is_not_given_everything_at_once(tmp_path):
    async with stage_in(tmp_path, parallel=8) as stage:
        old = await stage.ready()
        for _ in range(8):
            stage.replica.answering(old, 200)  # it bears all by now
        stage.start.end()
        await stage.told("replica.starting")
        calls = [stage.call() for _ in range(8)]
        await stage.waiting(8)
        stage.start.come_up()
        await stage.waiting(6)
        stage.replica.answering(old, 200)  # late, and of the run before
        assert stage.replica.status().in_flight == 2 + 1
        stage.route.release(old, served=False)
        assert (stage.replica.status().in_flight, stage.route.waiting) == (2, 6)
        for call in calls:
            stage.route.release(await call, served=True)


async def test_it_does_not_idle_while_it_is_held(tmp_path):
    async with stage_in(tmp_path) as stage:
        hold = await stage.ready()
        stage.replica.post("idle")
        await stage.read()
        assert stage.state == "ready"
        stage.route.release(hold, served=True)
        stage.replica.post("idle")
        await stage.told("replica.cold")
        assert stage.start.torn_down == [1]


async def test_it_stops_by_itself_when_the_idle_time_is_over(tmp_path):
    async with stage_in(tmp_path, idle_seconds=0.01) as stage:
        hold = await stage.ready()
        stage.pass_s(60)
        stage.route.release(hold, served=True)
        stage.pass_s(0.01)
        assert (await stage.told("replica.stopping")).detail["because"] == "idle"
        await stage.told("replica.cold")


async def test_a_call_while_it_stops_waits_for_the_next_run(tmp_path):
    async with stage_in(tmp_path) as stage:
        stage.route.release(await stage.ready(), served=True)
        stage.start.may_go.clear()
        stage.replica.post("idle")
        await stage.told("replica.stopping")
        calls = [stage.call() for _ in range(3)]
        await stage.waiting(3)
        await stage.read()
        assert (stage.state, stage.start.runs) == ("stopping", [1])
        stage.start.may_go.set()
        stage.start.come_up()
        assert {hold.run for hold in await asyncio.gather(*calls)} == {2}
        assert (stage.start.runs, stage.start.torn_down) == ([1, 2], [1])


async def test_who_leaves_in_the_moment_they_are_let_in_holds_nothing(tmp_path):
    async with stage_in(tmp_path) as stage:
        calling = stage.call()
        await stage.told("replica.starting")
        stage.start.come_up()
        await stage.told("replica.ready")
        assert not calling.done()  # let in, and yet to hear of it
        assert stage.replica.status().in_flight == 1
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert stage.replica.status().in_flight == 0
        stage.replica.post("idle")
        await stage.told("replica.cold")


async def test_who_runs_out_of_time_in_the_moment_they_are_let_in_holds_nothing(tmp_path):
    async with stage_in(tmp_path, wait_seconds=0.001) as stage:
        calling = stage.call(wait_seconds=0.05)
        await stage.told("replica.starting")
        stage.start.upstream = Upstream("unix:/nowhere/1.sock")
        stage.replica._inbox.put_nowait(_Note("up", 1))
        time.sleep(0.06)  # noqa: ASYNC251  nothing runs meanwhile, so the loop then finds both at once
        with pytest.raises(NotReady, match=r"not ready within 0\.05 s"):
            await calling
        assert (await stage.told("replica.ready")).detail["run"] == 1
        assert stage.replica.status().in_flight == 0


async def test_who_left_the_queue_is_forgotten(tmp_path):
    async with stage_in(tmp_path, max_waiting=1) as stage:
        calling = stage.call()
        await stage.waiting(1)
        with pytest.raises(NotReady, match="1 requests already wait"):
            await stage.route.hold()
        calling.cancel()
        await stage.waiting(0)
        calling = stage.call()
        await stage.waiting(1)
        stage.start.come_up()
        assert (await calling).run == 1
        assert stage.replica.status().in_flight == 1


async def test_failures_are_forgiven_by_an_answer_of_this_run(tmp_path):
    async with stage_in(tmp_path) as stage:
        old = await stage.ready()
        stage.start.end()
        await stage.told("replica.backoff")
        hold = await stage.ready()  # once asked or not, it starts again
        assert hold.run == 2
        stage.route.release(old, served=True)
        await stage.read()
        assert stage.replica._life.failures == 1
        other = stage.take()
        stage.route.release(other, served=False)
        await stage.read()
        assert stage.replica._life.failures == 1
        stage.route.release(hold, served=True)
        await stage.read()
        assert stage.replica._life.failures == 0


async def test_a_start_has_an_end(tmp_path):
    async with stage_in(tmp_path, start_seconds=0.01) as stage:
        with pytest.raises(NotReady, match="demo"):
            await stage.route.hold()
        assert "did not start in 0.01 s" in stage.replica.status().reason
        assert stage.start.torn_down == [1]


async def test_a_start_that_fails_is_the_operators_to_understand(tmp_path):
    async with stage_in(tmp_path) as stage:
        calling = stage.call()
        stage.start.fail(EngineFailed("/secret/place is broken", hint="mend it"))
        with pytest.raises(NotReady) as refused:
            await calling
        assert "/secret" not in str(refused.value)
        assert refused.value.retry_after_s
        assert stage.replica.status().reason == "/secret/place is broken"
        assert (await stage.told("engine.failed")).detail["hint"] == "mend it"
        stage.route.release(await stage.ready(), served=True)
        assert stage.replica.status().reason is None


async def test_an_operator_may_stop_it_while_it_starts(tmp_path):
    async with stage_in(tmp_path) as stage:
        calling = stage.call()
        await stage.told("replica.starting")
        stage.replica.post("stop")
        with pytest.raises(NotReady, match="was stopped"):
            await calling
        await stage.told("replica.cold")
        assert (stage.state, stage.start.torn_down) == ("stopped", [1])
        with pytest.raises(NotReady, match="was stopped"):
            await stage.route.hold()
        assert stage.start.runs == [1]
        stage.replica.post("open")
        assert (await stage.ready()).run == 2


async def test_who_holds_it_may_finish_before_it_stops(tmp_path):
    async with stage_in(tmp_path) as stage:
        first = await stage.ready()
        second = stage.take()
        stage.replica.post("stop")
        await stage.told("replica.stopping")
        assert stage.take() is None
        stage.route.release(first, served=True)
        await stage.read()
        assert (stage.state, stage.start.torn_down) == ("stopping", [])
        stage.route.release(second, served=True)
        await stage.told("replica.cold")
        assert stage.start.torn_down == [1]


async def test_who_does_not_finish_is_cut(tmp_path):
    async with stage_in(tmp_path, drain_seconds=0.01) as stage:
        await stage.ready()
        stage.replica.post("stop")
        assert (await stage.told("engine.cut")).detail == {"run": 1, "in_flight": 1}
        await stage.told("replica.cold")
        assert stage.start.torn_down == [1]


async def test_the_end_of_its_owner_is_the_end_of_its_run(tmp_path):
    async with stage_in(tmp_path) as stage:
        calling = stage.call()
        await stage.told("replica.starting")
        stage.owner.cancel()
        with pytest.raises(NotReady, match="shutting down"):
            await calling
        await asyncio.wait([stage.owner])
        assert stage.start.torn_down == [1]


async def test_who_left_a_request_unanswered_gets_no_other_until_it_is_known_whether_it_has_ended(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("freehold.fleet.replica.DOUBT_S", 0.05)
    async with stage_in(tmp_path) as stage:
        hold = await stage.ready()
        stage.replica.unanswered(hold.run)
        assert stage.take() is None
        calling = stage.call()
        await stage.waiting(1)
        assert (await calling).run == 1  # it lives on, and nobody waits for ever to learn that
        stage.replica.unanswered(1)
        calling = stage.call()
        await stage.waiting(1)
        stage.start.end()
        stage.start.come_up()
        assert (await calling).run == 2
        stage.replica.unanswered(1)  # of a run that is gone
        assert stage.take()


async def test_starts_are_measured_and_told_to_who_is_sent_away(tmp_path):
    async with stage_in(tmp_path, max_waiting=0) as stage:
        with pytest.raises(NotReady) as refused:
            await stage.route.hold()
        assert refused.value.retry_after_s == 10  # nobody knows yet how long it takes
        await stage.told("replica.starting")
        stage.pass_s(4)
        stage.start.come_up()
        assert (await stage.told("replica.ready")).detail["seconds"] == 4
        assert stage.replica.status().last_start_s == 4
        stage.start.end()
        await stage.told("replica.starting")
        stage.pass_s(1)
        with pytest.raises(NotReady) as refused:
            await stage.route.hold()
        assert refused.value.retry_after_s == 3  # a second of this start has passed
        stage.start.fail(NotReady("no"))
        assert (await stage.told("engine.failed")).detail["run"] == 2
        await stage.told("replica.backoff")
        with pytest.raises(NotReady) as refused:
            await stage.route.hold()
        assert refused.value.retry_after_s == 1 + 4  # after two failures in a row it rests for a second


async def test_every_phase_is_on_the_account(tmp_path):
    async with stage_in(tmp_path) as stage:
        stage.pass_s(1)
        calling = stage.call()
        await stage.told("replica.starting")
        stage.pass_s(4)
        stage.start.come_up()
        await stage.told("replica.ready")
        hold = await calling
        stage.pass_s(3)
        assert stage.route.release(hold, served=True) == 3 * 10**12
        stage.pass_s(2)
        stage.start.may_go.clear()
        stage.replica.post("idle")
        await stage.told("replica.stopping")
        stage.pass_s(5)
        stage.start.may_go.set()
        await stage.told("replica.cold")
        stage.pass_s(6)
        _, rows = stage.ground.occupancy.take(stage.now_ns)
        seconds = {(row[1], row[2]): row[4] / 10**9 for row in rows}
        assert seconds == {
            ("", "vacant"): 1 + 6,
            ("demo", "starting"): 4,
            ("demo", "serving"): 3,
            ("demo", "idle"): 2,
            ("demo", "stopping"): 5,
        }


async def test_a_stop_waits_for_a_tear_down_that_is_under_way(tmp_path):
    async with stage_in(tmp_path) as stage:
        stage.route.release(await stage.ready(), served=True)
        stage.start.may_go.clear()
        stage.start.end()
        await stage.told("engine.exited")
        stage.replica.post("stop")
        await stage.read()
        assert stage.start.torn_down == []
        assert stage.state != "stopped"
        stage.start.may_go.set()
        await stage.told("replica.cold")
        assert stage.start.torn_down == [1]


async def test_a_tear_down_that_fails_ends_the_run_and_not_the_replica(tmp_path, monkeypatch):
    async with stage_in(tmp_path) as stage:
        stage.route.release(await stage.ready(), served=True)

        async def fail() -> None:
            stage.start.upstream = None
            raise PermissionError("not ours to end")

        with monkeypatch.context() as once:
            once.setattr(stage.start, "tear_down", fail)
            stage.start.end()
            event = await stage.told("engine.failed")
        assert "not ours to end" in event.detail["reason"]
        assert (await stage.ready()).run == 2


class Probed(Upstream):
    """It answers probes as told: a status, or never."""

    status: int | None = 200

    async def fetch(self, method, path, body=b""):
        await (asyncio.sleep(0) if self.status else asyncio.Event().wait())
        return Answer(self.status, b"")


@contextlib.asynccontextmanager
async def probed_in(folder, monkeypatch, hung_probes=1000):
    for name, value in (("PROBE_S", 0.001), ("PATIENCE_S", 0.01)):
        monkeypatch.setattr(f"freehold.fleet.health.{name}", value)
    monkeypatch.setattr("freehold.fleet.replica.HUNG_PROBES", hung_probes)
    monkeypatch.setattr("fake_start.Upstream", Probed)
    async with stage_in(folder) as stage:
        stage.route.release(await stage.ready(), served=True)
        yield stage


@pytest.mark.parametrize("status", [None, 500])
async def test_an_engine_of_ours_that_answers_no_probe_is_left_out_until_it_does(tmp_path, monkeypatch, status):
    async with probed_in(tmp_path, monkeypatch) as stage:
        stage.start.upstream.status = status
        event = await stage.told("replica.silent")
        assert event.detail == {"replica": "demo", "why": "status 500" if status else "no answer in 0.01 s"}
        assert (stage.take(), stage.replica.status().answers) == (None, False)
        calling = stage.call()
        await stage.waiting(1)
        stage.start.upstream.status = 200
        await stage.told("replica.answers")
        assert (await calling).run == 1


async def test_an_engine_that_hangs_is_started_anew(tmp_path, monkeypatch):
    async with probed_in(tmp_path, monkeypatch, hung_probes=5) as stage:
        stage.start.upstream.status = None
        calling = stage.call()  # nobody knows yet
        stage.route.release(await calling, served=False)
        await stage.told("replica.silent")
        calling = stage.call()
        assert "hangs: it answered none of 5 probes" in (await stage.told("engine.failed")).detail["reason"]
        await stage.told("replica.starting")
        assert (stage.start.torn_down, stage.replica.status().answers) == ([1], True)
        monkeypatch.setattr("freehold.fleet.health.PROBE_S", 60)
        stage.start.come_up()
        assert (await calling).run == 2  # no probe has to say so


async def test_an_engine_that_answers_requests_does_not_hang(tmp_path, monkeypatch):
    async with probed_in(tmp_path, monkeypatch, hung_probes=5) as stage:
        hold = stage.take()
        stage.start.upstream.status = 503
        for _ in range(20):
            await asyncio.sleep(0.003)
            stage.replica.answering(hold, 200)
        assert (stage.state, stage.start.runs) == ("ready", [1])


async def test_requests_left_unanswered_open_the_circuit_too(tmp_path, monkeypatch):
    async with probed_in(tmp_path, monkeypatch) as stage:
        monkeypatch.setattr("freehold.fleet.health.PROBE_S", 0.05)
        for _ in range(3):
            stage.replica.unanswered(1)
        assert (await stage.told("replica.silent")).detail["why"] == "requests were not answered"
        await stage.told("replica.answers")  # a probe was
