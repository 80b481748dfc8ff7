"""EngineClient against a scripted far end: streams, calls, death and restart."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from fake_engine import stats_of
from scripted_engine import INFO, Hangup, ScriptedEngine

from weft.adapters.errors import AdapterInvalid
from weft.adapters.tenancy import TenantContext
from weft.server.engine.client import (
    EngineClient,
    EngineError,
    EngineStartError,
    EngineUnavailable,
)
from weft.server.engine.messages import (
    START,
    Abort,
    Command,
    Done,
    EngineConfig,
    Event,
    Failed,
    Generate,
    Load,
    Loaded,
    LoadReport,
    Pause,
    Pin,
    Progress,
    Reserve,
    Sampling,
    Stop,
    TokenLogprobs,
    Tokens,
    Unload,
)
from weft.server.engine.stream import MANY_BYTES, MANY_UNREAD, Stream, size_of

OWN = TenantContext("own", kv_pages=3)
CONFIG = EngineConfig(model="m", store="s")
REPORT = LoadReport(
    digest="d",
    method="LORA",
    rank=4,
    tensors=2,
    modules=1,
    bytes=8,
    load_seconds=0.1,
    canary_difference=1.0,
    checks=("finite",),
)


def generate(name: str, n: int = 1) -> Generate:
    return Generate(
        id=name, tenant=TenantContext("t"), prompt=(1, 2), sampling=Sampling(max_tokens=4), n=n
    )


def answers(reply: Callable[[Command], list[Event]]) -> Callable[[Command], list[Event]]:
    def answer(command: Command) -> list[Event]:
        if isinstance(command, EngineConfig):
            return [Progress("weights", 1, 2), INFO]
        if isinstance(command, Stop):
            raise Hangup
        return reply(command)

    return answer


@asynccontextmanager
async def started(engine: ScriptedEngine) -> AsyncIterator[EngineClient]:
    client = EngineClient(CONFIG, launch=engine.launch)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def collect(client: EngineClient, request: Generate) -> list[Tokens]:
    return [event async for event in client.generate(request)]


def test_start_reports_progress_and_info() -> None:
    async def scenario() -> None:
        seen: list[Progress] = []
        engine = ScriptedEngine(answers(lambda _: []))
        client = EngineClient(CONFIG, launch=engine.launch, on_progress=seen.append)
        with pytest.raises(EngineUnavailable):
            _ = client.info
        assert await client.start() == INFO
        assert seen == [Progress("weights", 1, 2)]
        assert client.ready
        assert client.info == INFO
        await client.close()
        assert not client.ready

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ([Failed(START, "model_unsupported", "m", "ALiBi is not paged")], "m: ALiBi is not paged"),
        ([], "died"),
    ],
)
def test_a_failed_start_raises_once_and_is_not_repeated(last: list[Event], message: str) -> None:
    def answer(_: Command) -> list[Event]:
        raise Hangup(*last)

    async def scenario() -> None:
        engine = ScriptedEngine(answer)
        client = EngineClient(CONFIG, launch=engine.launch)
        with pytest.raises(EngineStartError, match=message):
            await client.start()
        await client.close()
        assert engine.launches == 1

    asyncio.run(scenario())


def test_streams_end_after_the_last_child_and_are_not_mixed() -> None:
    def reply(command: Command) -> list[Event]:
        if not isinstance(command, Generate):
            return []
        mark = len(command.id)
        return [
            Tokens(id=command.id, index=1, tokens=(mark,)),
            Tokens(id=command.id, index=0, tokens=(mark,), finish="length"),
            Tokens(id="never-asked", index=0, tokens=(99,), finish="stop"),
            Tokens(id=command.id, index=1, tokens=(mark,), finish="stop", stop_token=2),
        ]

    async def scenario() -> None:
        async with started(ScriptedEngine(answers(reply))) as client:
            a, bb = await asyncio.gather(
                collect(client, generate("a", n=2)), collect(client, generate("bb", n=2))
            )
        assert [(event.index, event.tokens, event.finish) for event in a] == [
            (1, (1,), None),
            (0, (1,), "length"),
            (1, (1,), "stop"),
        ]
        assert {event.tokens for event in bb} == {(2,)}

    asyncio.run(scenario())


def test_leaving_a_stream_aborts_the_request() -> None:
    def reply(command: Command) -> list[Event]:
        if isinstance(command, Generate):
            return [Tokens(id=command.id, index=0, tokens=(5,))]
        return []

    async def scenario() -> None:
        engine = ScriptedEngine(answers(reply))
        async with started(engine) as client:
            stream = client.generate(generate("left"))
            assert (await anext(stream)).tokens == (5,)
            await stream.aclose()
            assert await asyncio.to_thread(engine.wait_for, Abort) == [Abort("left")]

    asyncio.run(scenario())


def test_what_comes_after_a_stream_was_left_is_told_to_its_end() -> None:
    def reply(command: Command) -> list[Event]:
        if isinstance(command, Generate):
            return [Tokens(id=command.id, index=i, tokens=(5,)) for i in range(2)]
        if isinstance(command, Abort):
            ends = [
                Tokens(id=command.id, index=i, finish="abort", computed_tokens=3) for i in (0, 1)
            ]
            return [*ends, Tokens(id=command.id, index=1, tokens=(9,))]
        return [Done(command.id)] if isinstance(command, Pin) else []

    async def scenario() -> None:
        late: list[Tokens] = []
        async with started(ScriptedEngine(answers(reply))) as client:
            stream = client.generate(generate("left", 2), late.append)
            await anext(stream)
            await client.pin("d", True)  # whose answer comes after the second child's token
            await stream.aclose()
            await client.pin("d", False)
        told = [(event.index, event.tokens, event.finish) for event in late]
        assert told == [(1, (5,), None), (0, (), "abort"), (1, (), "abort")]

    asyncio.run(scenario())


def test_calls_return_or_raise_what_the_engine_says() -> None:
    def reply(command: Command) -> list[Event]:
        if isinstance(command, Load):
            return {
                "good": [Loaded(command.id, REPORT)],
                "bad": [Failed(command.id, "adapter_invalid", "lora_A", "has NaN")],
                "rotten": [Failed(command.id, "adapter_corrupt", "file", "digest differs")],
            }[command.digest]
        return [Done(command.id)] if isinstance(command, Pin) else []

    async def scenario() -> None:
        async with started(ScriptedEngine(answers(reply))) as client:
            assert await client.load("good") == REPORT
            with pytest.raises(AdapterInvalid, match="lora_A: has NaN"):
                await client.load("bad")
            with pytest.raises(EngineError) as failure:
                await client.load("rotten")
            assert failure.value.code == "adapter_corrupt"
            await client.pin("good", True)

    asyncio.run(scenario())


def test_death_ends_every_wait_and_the_engine_comes_back_with_its_pins_and_promises() -> None:
    def reply(command: Command) -> list[Event]:
        if isinstance(command, Pin):
            return [Done(command.id)]
        if isinstance(command, Generate) and command.id == "fatal":
            raise Hangup
        if isinstance(command, Generate) and command.id == "after":
            return [Tokens(id="after", index=0, tokens=(7,), finish="length")]
        return []

    async def scenario() -> None:
        engine = ScriptedEngine(answers(reply))
        async with started(engine) as client:
            await client.pin("kept", True)
            client.reserve([OWN])
            waiting = [
                asyncio.ensure_future(collect(client, generate("waiting"))),
                asyncio.ensure_future(client.load("slow")),
            ]
            await asyncio.to_thread(engine.wait_for, Load)
            with pytest.raises(EngineUnavailable):
                await collect(client, generate("fatal"))
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, EngineUnavailable)
            with pytest.raises(EngineUnavailable):
                await collect(client, generate("too-early"))
            pins = await asyncio.to_thread(engine.wait_for, Pin, 2)
            assert [(pin.digest, pin.pinned) for pin in pins if isinstance(pin, Pin)] == [
                ("kept", True)
            ] * 2
            promises = await asyncio.to_thread(engine.wait_for, Reserve, 2)
            assert promises == [Reserve((OWN,))] * 2
            assert client.restarts == 1
            assert [event.tokens for event in await collect(client, generate("after"))] == [(7,)]

    asyncio.run(scenario())


def test_evictions_are_summed_over_all_that_the_engine_says() -> None:
    def answer(command: Command) -> list[Event]:
        match command:
            case Load(id=call):
                return [
                    stats_of({}, evicted=("a", "b")),
                    stats_of({}, evicted=("a",)),
                    Loaded(call, REPORT),
                ]
            case Unload(id=call):
                return [Done(call)]
        return []

    async def scenario() -> None:
        async with started(ScriptedEngine(answers(answer))) as client:
            await client.load("d")
            assert client.evictions == {"a": 2, "b": 1}
            await client.unload("a")
            assert client.evictions == {"b": 1}

    asyncio.run(scenario())


def test_probe_decodes_a_real_token() -> None:
    def reply(command: Command) -> list[Event]:
        assert isinstance(command, Generate)
        return [Tokens(id=command.id, index=0, tokens=(1,), finish="length")]

    async def scenario() -> None:
        engine = ScriptedEngine(answers(reply))
        async with started(engine) as client:
            assert await client.probe()
            assert await client.probe(), "a token was decoded just now: no second probe is needed"
            assert len(engine.wait_for(Generate)) == 1

    asyncio.run(scenario())


def test_what_is_read_slowly_is_paused_until_it_was_read() -> None:
    rounds = 3

    def burst(name: str, left: int) -> list[Event]:
        events = [Tokens(id=name, index=0, tokens=(7,)) for _ in range(MANY_UNREAD)]
        return events if left else [*events, Tokens(id=name, index=0, finish="length")]

    async def scenario() -> None:
        left = iter(reversed(range(rounds)))

        def reply(command: Command) -> list[Event]:
            goes_on = isinstance(command, Generate) or (
                isinstance(command, Pause) and not command.paused
            )
            bursts = next(left, None) if goes_on else None
            return [] if bursts is None else burst("slow", bursts)

        engine = ScriptedEngine(answers(reply))
        async with started(engine) as client:
            stream = client.generate(generate("slow"))
            await anext(stream)
            assert await asyncio.to_thread(engine.wait_for, Pause) == [Pause("slow", True)]
            rest = [event async for event in stream]
            assert len(rest) == rounds * MANY_UNREAD
            told = await asyncio.to_thread(engine.wait_for, Pause, 2 * rounds - 1)
            pauses = [c.paused for c in told if isinstance(c, Pause)]
            assert pauses[: 2 * rounds - 1] == [True, False] * (rounds - 1) + [True]

    asyncio.run(scenario())


@pytest.mark.parametrize("of_prompt", [False, True])
def test_large_events_are_counted_by_their_bytes(of_prompt: bool) -> None:
    top = tuple((token, -1.0) for token in range(20))
    choices = (TokenLogprobs(7, -0.5, top),) * 10
    told = {"prompt_logprobs": (None, *choices)} if of_prompt else {"logprobs": choices}
    large = Tokens(id="slow", index=0, tokens=(7,), **told)
    count = MANY_BYTES // size_of(large) + 1
    assert count < MANY_UNREAD / 4

    def reply(command: Command) -> list[Event]:
        if isinstance(command, Generate):
            return [Tokens(id="slow", index=0), *[large] * count]
        goes_on = isinstance(command, Pause) and not command.paused
        return [large, Tokens(id="slow", index=0, finish="length")] if goes_on else []

    async def scenario() -> None:
        engine = ScriptedEngine(answers(reply))
        async with started(engine) as client:
            stream = client.generate(generate("slow"))
            await anext(stream)
            (unread,) = client._streams.values()
            assert await asyncio.to_thread(engine.wait_for, Pause) == [Pause("slow", True)]
            assert MANY_BYTES <= unread.unread_bytes < MANY_BYTES + size_of(large)
            assert [event async for event in stream][-1].finish == "length"
            assert unread.unread_bytes == 0

    asyncio.run(scenario())


def test_what_is_unread_is_counted_exactly() -> None:
    async def scenario() -> None:
        stream = Stream({0})
        events = [Tokens(id="r", index=0, tokens=(number,)) for number in range(MANY_UNREAD)]
        for event in events[:-1]:
            stream.put(event)
        assert not stream.is_behind
        stream.put(events[-1])
        assert stream.is_behind
        assert [await stream.get() for _ in range(3)] == events[:3]
        assert not stream.is_behind
        assert not stream.has_caught_up
        stream.put(None)
        assert stream.take_unread() == events[3:]
        assert stream.unread_bytes == 0
        assert stream.has_caught_up

    asyncio.run(scenario())


def test_a_reader_that_keeps_up_is_never_paused() -> None:
    def reply(command: Command) -> list[Event]:
        if not isinstance(command, Generate):
            return []
        events = [Tokens(id=command.id, index=0, tokens=(7,)) for _ in range(MANY_UNREAD - 2)]
        return [*events, Tokens(id=command.id, index=0, finish="length")]

    async def scenario() -> None:
        engine = ScriptedEngine(answers(reply))
        async with started(engine) as client:
            await collect(client, generate("quick"))
        assert not [c for c in engine.commands if isinstance(c, Pause)]

    asyncio.run(scenario())
