"""Span arithmetic against sets of integers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backbone.model import Span
from backbone.storage.coverage import Coverage, SpanSet

edges = st.integers(min_value=0, max_value=30)
spans = st.tuples(edges, edges)
span_lists = st.lists(spans, max_size=6)


def instants(spans: object) -> set[int]:
    return {i for start, end in spans for i in range(start, end)}  # type: ignore[attr-defined]


def is_normal(found: SpanSet) -> bool:
    """Sorted, no empty, overlapping or touching spans."""
    return all(s.start < s.end for s in found) and all(
        a.end < b.start for a, b in zip(found.spans, found.spans[1:], strict=False)
    )


@given(span_lists, span_lists)
def test_span_set_operations_agree_with_sets_of_instants(first: list[Span], second: list[Span]) -> None:
    """Union, intersection and difference hold exactly the instants that sets would."""
    a, b = SpanSet(first), SpanSet(second)
    for found, wanted in (
        (a, instants(first)),
        (a | b, instants(first) | instants(second)),
        (a & b, instants(first) & instants(second)),
        (a - b, instants(first) - instants(second)),
    ):
        assert instants(found) == wanted
        assert is_normal(found)
        assert bool(found) == bool(wanted)


@given(span_lists, spans)
def test_span_set_questions_agree_with_sets_of_instants(listed: list[Span], asked: Span) -> None:
    """Containing, touching, clipping and holding answer as sets would."""
    found, wanted, window = SpanSet(listed), instants(listed), set(range(*asked))
    assert found.contains(asked) == (window <= wanted)
    assert found.touches(asked) == bool(window & wanted)
    assert instants(found.clip(asked)) == wanted & window
    assert is_normal(found.clip(asked))
    assert all(found.holds(i) == (i in wanted) for i in range(-1, 32))


@given(span_lists)
def test_span_sets_that_mean_the_same_are_equal(listed: list[Span]) -> None:
    """Two spellings of one set are equal and hash alike."""
    again = SpanSet(Span(i, i + 1) for i in sorted(instants(listed)))
    assert again == SpanSet(listed)
    assert hash(again) == hash(SpanSet(listed))
    assert SpanSet.of(again) is again


def test_span_set_of_a_span_is_that_span() -> None:
    """A single span becomes a set of one, an empty one the empty set."""
    assert SpanSet.of(Span(1, 3)).spans == (Span(1, 3),)
    assert SpanSet.of(Span(3, 3)).bounds is None
    assert SpanSet([(1, 2), (5, 6)]).bounds == Span(1, 6)
    assert repr(SpanSet([(1, 2)])) == "SpanSet([(1, 2)])"


provisionals = st.one_of(st.none(), st.tuples(spans, st.integers(1, 9)))
replies = st.lists(st.tuples(spans, provisionals, st.sampled_from(["rest", "adopted", "archive"])), max_size=6)


def provisional(fresh: object, proof: SpanSet) -> dict[int, SpanSet]:
    if fresh is None:
        return {}
    span, due = fresh  # type: ignore[misc]
    return {due: proof.clip(span)}


@given(replies, spans, st.integers(0, 10))
def test_coverage_agrees_with_a_map_of_instants(reported: list[object], window: Span, now: int) -> None:
    """Coverage only grows, and the newest reply decides alone what of its span is provisional, and its source."""
    coverage, due_at, source_at = Coverage(), dict[int, int](), dict[int, str]()
    covered = set[int]()
    for proof_span, fresh, source in reported:  # type: ignore[misc]
        proof = SpanSet([proof_span])
        coverage = coverage.proved(proof, provisional(fresh, proof), source=source)
        source_at |= dict.fromkeys(instants(proof), source)
        covered |= instants(proof)
        due_at = {i: due for i, due in due_at.items() if i not in instants(proof)}
        due_at |= {i: due for due, spans in provisional(fresh, proof).items() for i in instants(spans)}
    inside = set(range(*window))
    assert instants(coverage.covered) == covered
    assert instants(coverage.due(now)) == {i for i, due in due_at.items() if due <= now}
    assert instants(coverage.clip(window).covered) == covered & inside
    assert instants(coverage.clip(window).due(now)) == instants(coverage.due(now)) & inside
    rest = coverage.without(SpanSet([window]))
    assert instants(rest.covered) == covered - inside
    assert instants(rest.due(now)) == instants(coverage.due(now)) - inside
    for source in ("rest", "adopted", "archive"):
        mine = {i for i, found in source_at.items() if found == source}
        assert instants(coverage.of_source(source)) == mine
        assert instants(coverage.clip(window).of_source(source)) == mine & inside
        assert instants(rest.of_source(source)) == mine - inside
    parts = [coverage.clip((0, 11)), coverage.clip((11, 12)), coverage.clip((12, 40))]
    assert Coverage.joined(parts) == coverage
