"""The package's public names are a decision: sorted, documented, and all there."""

import distkv_jax


def test_public_names_are_sorted_and_unique():
    assert list(distkv_jax.__all__) == sorted(set(distkv_jax.__all__))


def test_every_public_name_exists_with_a_docstring_of_its_own():
    for name in distkv_jax.__all__:
        public = getattr(distkv_jax, name)
        # A dataclass without a docstring gets its signature as one.
        assert public.__doc__, name
        assert not public.__doc__.startswith(f"{name}("), name


def test_the_package_says_what_it_is():
    assert distkv_jax.__doc__
