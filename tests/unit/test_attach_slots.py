from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.lab.frames import FRAME
from unplugd.attach.slots import PAGE_SIZE, SLOT_SIZE, Access, Kind, Slots, SlotState


def page(**vcpus: bytes) -> tuple[bytearray, Slots]:
    memory = bytearray(PAGE_SIZE)
    for name, slot in vcpus.items():
        at = int(name[1:]) * SLOT_SIZE
        memory[at:at + SLOT_SIZE] = slot
    return memory, Slots(memoryview(memory))


def slot(*, state: int = 1, data: int = 0, port: int = 0x10, count: int = 1, size: int = 2, eport: int = 9,
         string: bool = False, read: bool = False, df: bool = False, kind: int = 0) -> bytes:
    return FRAME.pack(port, data, count, size, eport, 0, state | string << 4 | read << 5 | df << 6, kind)


@given(st.integers(0, 127), st.integers(0, (1 << 64) - 1), st.sampled_from([1, 2, 4]), st.booleans(), st.booleans(),
       st.booleans(), st.integers(0, 0xFFFF))
def test_an_access_is_taken_and_answered(
    vcpu: int, data: int, size: int, read: bool, string: bool, df: bool, port: int
) -> None:
    memory, slots = page(**{f"v{vcpu}": slot(data=data, size=size, read=read, string=string, df=df, port=port)})
    assert slots.state(vcpu) == SlotState.READY
    access = slots.take(vcpu)
    kept = data if read or string else data % (1 << 8 * size)
    assert access == Access(Kind.PIO, port, kept, 1, size, read, string, df)
    assert slots.state(vcpu) == SlotState.IN_PROCESS
    slots.answer(vcpu, 0x1234 if read else None)
    assert slots.state(vcpu) == SlotState.RESPONSE
    expected = slot(state=3, data=0x1234 if read else data, size=size, read=read, string=string, df=df, port=port)
    before, after = vcpu * SLOT_SIZE, (vcpu + 1) * SLOT_SIZE
    assert bytes(memory[before:after]) == expected
    assert not any(memory[:before])
    assert not any(memory[after:])


def test_vcpus_are_those_with_an_event_channel() -> None:
    _, slots = page(v0=slot(state=0, eport=5), v3=slot(state=0, eport=8), v127=slot(state=0, eport=70))
    assert list(slots.present()) == [(0, 5), (3, 8), (127, 70)]
    assert slots.state(1) == SlotState.NONE


def test_invalidate_keeps_its_data() -> None:
    _, slots = page(v0=slot(kind=8, data=(1 << 64) - 1, size=4, port=0, count=0))
    access = slots.take(0)
    assert access.kind == Kind.INVALIDATE
    assert access.data == (1 << 64) - 1
