"""Model classes that are sliced by their config before their weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sos_deap.models.family import Family
from sos_deap.models.sites import ATTENTION, EXPERTS, FEED_FORWARD, Site, find_sites
from sos_deap.models.sizes import set_sizes
from sos_deap.models.slices import head_parameters, smaller_modules


def slice_model(
    model: Any, family: Family, heads: Any, channels: Any = None, experts: Any = None
) -> None:
    """Remove heads, channels and experts from a model, in place.

    :param model: the model, not pruned; on the meta device nothing is computed.
    :param family: its architecture.
    :param heads: for each attention site the indices of the query heads to keep, in rising order.
    :param channels: for each feed-forward site the number of channels to keep; the weights of the
        first ones stay. Default: all channels.
    :param experts: the same for each mixture of experts.
    :raises ValueError: for values that do not fit the model.
    """
    sites = find_sites(model, family)
    kept = _checked_kept(sites, heads, channels, experts)
    for site, keep in zip(sites, kept, strict=True):
        for name, parameter in head_parameters(model, family, site, keep).items():
            setattr(model.get_submodule(site.module), name, parameter)
    for path, module in smaller_modules(model, family, sites, kept).items():
        model.set_submodule(path, module)
    set_sizes(model, family, sites, kept)


def _checked_kept(
    sites: Sequence[Site], heads: Any, channels: Any, experts: Any
) -> list[list[int]]:
    """Return the kept units of each site, from the values in a ``config.json``.

    :raises ValueError: for values that do not fit the sites.
    """
    attention = [site for site in sites if site.kind == ATTENTION]

    def fits(keep: Any, site: Site) -> bool:
        plain = isinstance(keep, list) and all(type(head) is int for head in keep)
        return plain and keep == sorted(set(keep) & set(range(site.units)))

    if not _is_list(heads, len(attention)) or not all(map(fits, heads, attention)):
        raise ValueError(
            "kept_heads in config.json must list, for each of the model's "
            f"{len(attention)} attention modules, the indices of its kept heads in rising order"
        )
    left = {
        ATTENTION: iter(heads),
        FEED_FORWARD: _first_units(sites, FEED_FORWARD, channels, "feed-forward modules"),
        EXPERTS: _first_units(sites, EXPERTS, experts, "mixtures of experts"),
    }
    return [next(left[site.kind]) for site in sites]


def _first_units(
    sites: Sequence[Site], kind: str, counts: Any, modules: str
) -> Iterator[list[int]]:
    """Return the kept units of each site of a kind, from their numbers in a ``config.json``."""
    own = [site for site in sites if site.kind == kind]
    if counts is None:
        counts = [site.units for site in own]
    if not _is_list(counts, len(own)) or not all(
        type(count) is int and 0 <= count <= site.units
        for count, site in zip(counts, own, strict=True)
    ):
        units = "experts" if kind == EXPERTS else "channels"
        raise ValueError(
            f"kept_{units} in config.json must list, for each of the model's "
            f"{len(own)} {modules}, its number of kept {units}"
        )
    return iter([list(range(count)) for count in counts])


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def pruned_class(stock: type, family: Family) -> Any:
    """Make a model class that is sliced by its config before its weights are loaded.

    The config lists ``kept_heads`` for each attention module and, unless all are kept, the numbers
    ``kept_channels`` for each feed-forward module and ``kept_experts`` for each mixture.

    :param stock: the class in transformers; the new class has its name, since saved configs refer
        to a class by name.
    :param family: its architecture.
    """

    class Pruned(stock):  # type: ignore[misc]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            # Only other programs read it; if set, config.num_attention_heads raises an error.
            config.per_layer_config = None
            super().__init__(config, *args, **kwargs)
            others = (getattr(config, f"kept_{units}", None) for units in ("channels", "experts"))
            slice_model(self, family, config.kept_heads, *others)

    Pruned.__name__ = Pruned.__qualname__ = stock.__name__
    Pruned.__doc__ = stock.__doc__
    return Pruned
