"""Remove experts from a mixture inside a context, for several sub-models at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sos_deap.models.rows import rows_each
from sos_deap.models.sites import Site
from sos_deap.models.temporary import replaced, with_parameters


@contextmanager
def without_experts(model: nn.Module, site: Site, mask: Tensor) -> Iterator[None]:
    """Send no token to removed experts, inside the context.

    The router gets one more input per sub-model, which is 1 for the tokens of that sub-model and 0
    for all others. Its weight is 0 for kept experts and very low for removed ones. So the router's
    own code gives these the weight 0, however it computes weights from logits. If a sub-model keeps
    fewer experts than each token is sent to, removed ones are computed with the weight 0.

    :param model: the model; it is restored at the end, also after an exception.
    :param site: the mixture.
    :param mask: (sub-models, experts): 1 to keep the expert, 0 to remove it.
    """
    router: Any = model.get_submodule(site.router)
    weight: Tensor = router.weight
    # Half of the least number, so that the logit of the token itself cannot make it infinite.
    low = (1 - mask.to(weight)) * (torch.finfo(weight.dtype).min / 2)
    wider = nn.Parameter(torch.cat((weight.detach(), low.T), dim=1), requires_grad=False)
    own = {"hidden_dim": router.hidden_dim + len(mask)} if hasattr(router, "hidden_dim") else {}
    hooks = ExpertsMask(mask)
    module, experts = model.get_submodule(site.module), model.get_submodule(site.consumer)
    with ExitStack() as stack:
        stack.enter_context(replaced(router, **own))
        stack.enter_context(with_parameters(router, weight=wider))
        stack.callback(module.register_forward_pre_hook(hooks.check_rows).remove)
        stack.callback(router.register_forward_pre_hook(hooks).remove)
        if not mask.any(dim=1).all():
            stack.callback(experts.register_forward_hook(hooks.scale_output).remove)
        yield


def squared_outputs(experts: nn.Module, inputs: tuple[Any, ...], count: int) -> Tensor:
    """Return the squared norms of what each expert adds to the outputs, summed over tokens.

    :param experts: the module that computes the experts.
    :param inputs: its inputs: hidden states, (tokens, hidden size); for each token the indices of
        its experts, (tokens, experts per token); and their weights, of the same shape.
    :param count: number of experts.
    :returns: (experts,) in float64.
    """
    states, indices, weights = inputs[:3]
    found = torch.zeros(count, dtype=torch.float64, device=states.device)
    for slot in range(indices.shape[1]):  # one expert per token at a time
        only = slice(slot, slot + 1)
        added = experts.forward(states, indices[:, only], weights[:, only])
        found.index_add_(0, indices[:, slot], added.double().square().sum(1))
    return found


class ExpertsMask:
    """The hooks of a mixture without some experts; the object itself is that of the router.

    A copy has no mask: a model that is copied inside the context and used after its end computes
    with all experts.

    :param mask: (sub-models, experts).
    :param scales: whether the mask is used.
    """

    def __init__(self, mask: Tensor, scales: bool = True) -> None:
        self._mask, self.scales = mask, scales

    def __reduce__(self) -> Any:
        return ExpertsMask, (self._mask, False)

    def check_rows(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Check the rows of a batch, which the router gets as one long row of tokens."""
        if self.scales:
            rows_each(len(inputs[0]), len(self._mask))

    def __call__(self, router: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Add the inputs that show which sub-model a token belongs to.

        :param inputs: first the hidden states, (sub-models * rows, tokens, hidden size) or those of
            all tokens in one row.
        :returns: the same, the hidden states as (all tokens, hidden size + sub-models).
        """
        states, *rest = inputs
        tokens = states.flatten(0, -2)
        own = torch.eye(len(self._mask), dtype=states.dtype, device=states.device)
        if not self.scales:
            own = torch.zeros_like(own[:1]).expand(len(tokens), -1)
        else:
            own = own.repeat_interleave(len(tokens) // len(own), dim=0)
        return (torch.cat((tokens, own), dim=1), *rest)

    def scale_output(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Return the experts' output, with zeros for sub-models without any expert."""
        if not self.scales:
            return output
        some = self._mask.any(dim=1).to(output)
        blocks = output.reshape(len(some), -1, output.shape[-1])
        return (blocks * some[:, None, None]).view_as(output)
