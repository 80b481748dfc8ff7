"""What names a blend."""

from weft.adapters.blend import BASE, Part, alone, digest_of, text_of


def test_one_version_as_it_is_has_its_own_digest() -> None:
    assert alone(None) == BASE == ()
    assert text_of(BASE) == ""
    assert text_of(alone("d")) == digest_of(alone("d")) == digest_of((Part("d", 1),)) == "d"


def test_every_part_weight_and_their_order_count() -> None:
    a, b = Part("a" * 64), Part("b" * 64)
    blends = [(a, b), (b, a), (a,), (a._replace(weight=0.7), b), (a, b._replace(weight=0.7))]
    blends.append((a._replace(weight=0.7 + 1e-12), b))
    assert len({text_of(blend) for blend in blends}) == len(blends)
    digests = {digest_of(blend) for blend in blends}
    assert len(digests) == len(blends)
    assert all(len(digest) == 64 for digest in digests)
