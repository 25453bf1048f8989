"""Parts of a run: what is read from `--shard`, and that parts cover everything once."""

import hashlib

import pytest

from layercache import parts
from layercache.errors import RecipeError
from layercache.parts import Part

IDS = [hashlib.sha256(str(number).encode()).hexdigest()[:24] for number in range(2000)]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_parts_hold_every_sample_once_counted_from_0_or_1(first: int, count: int) -> None:
    all_parts = [parts.parse(f"{index}/{count}") for index in range(first, first + count)]
    for one in IDS:
        assert sum(parts.holds(part, one) for part in all_parts) == 1
    sizes = [len(parts.of(part, IDS)) for part in all_parts]
    assert min(sizes) > 0.8 * len(IDS) / count


def test_a_part_is_the_remainder_of_the_first_sixty_bits() -> None:
    for one in IDS[:100]:
        number = int.from_bytes(bytes.fromhex(one[:16])) >> 4
        assert parts.number(one, 5) == number % 5
        assert parts.holds(Part(number % 5, 5), one)


@pytest.mark.parametrize("text", ["0/1", "2/4", "4/4"])
def test_smaller_parts_together_are_the_part(text: str) -> None:
    whole = parts.parse(text)
    pieces = [set(parts.of(one, IDS)) for one in whole.split(3)]
    assert set.union(*pieces) == set(parts.of(whole, IDS))
    assert sum(map(len, pieces)) == len(parts.of(whole, IDS))


def test_without_a_part_there_is_everything() -> None:
    assert parts.of(None, IDS) == IDS
    assert parts.of(parts.WHOLE, IDS) == IDS
    assert list(map(str, parts.every(3))) == ["0/3", "1/3", "2/3"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0/0", "there must be at least one part"),
        ("5/4", "of 4 parts there is none with number 5: write 0/4 to 3/4, or count them from 1 to 4/4, which is 0/4"),
        ("a/b", "write i/n"),
        ("-1/4", "write i/n"),
        ("1", "write i/n"),
        ("1/4/2", "write i/n"),
        ("٣/٤", "write i/n"),
        ("", "write i/n"),
    ],
)
def test_what_is_no_part_is_refused_in_one_line(text: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why) as error:
        parts.parse(text)
    assert "\n" not in str(error.value)
