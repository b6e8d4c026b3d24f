"""Reading ahead keeps the order, hands errors on, and stops with its consumer."""

import pytest

from wiggle.errors import UserError
from wiggle.read_ahead import ReadAhead


def test_an_error_of_the_reader_comes_after_what_it_read():
    def items():
        yield from (1, 2, 3)
        raise UserError("lost")

    taken = []
    with pytest.raises(UserError, match="lost"), ReadAhead(items(), 2) as ahead:
        for item in ahead:
            taken.append(item)
    assert taken == [1, 2, 3]


def test_the_reader_stops_with_its_consumer():
    read = []

    def items():
        for number in range(10**6):
            read.append(number)
            yield number

    with ReadAhead(items(), 2) as ahead:
        assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    assert len(read) < 10
