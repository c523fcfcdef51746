"""Parts of the DiT that the rollouts of test_parity.py do not reach."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import lolrt
from lolrt import DiTConfig
from lolrt.models.dit import Attention


@pytest.mark.whole
def test_q_k_and_v_in_one_product_are_the_parameters_as_they_are(tmp_path):
    """Whatever happens to the parameters between two products: training, loading, a change of dtype, saving."""
    attn = Attention(DiTConfig(dim=64, num_heads=2))
    parameters = dict(attn.named_parameters())
    h = torch.randn(3, 5, 64)

    def check() -> None:
        expected = torch.cat([attn.q(h), attn.k(h), attn.v(h)], -1)
        with torch.inference_mode():
            torch.testing.assert_close(attn.qkv(h), expected.detach(), atol=1e-5, rtol=0)

    check()
    in_place = attn.k.weight.data_ptr()
    torch.optim.SGD(attn.parameters(), lr=0.1).zero_grad()
    (attn.q(h).square() + attn.v(h)).sum().backward()
    torch.optim.SGD(attn.parameters(), lr=1e-3).step()
    check()
    assert attn.k.weight.data_ptr() == in_place, "moved again for no reason"
    assert all(parameter is parameters[name] for name, parameter in attn.named_parameters())

    save_file(attn.state_dict(), tmp_path / "attn.safetensors")
    attn.load_state_dict({name: -2 * tensor for name, tensor in load_file(tmp_path / "attn.safetensors").items()}, assign=True)
    check()
    attn.k = torch.nn.Linear(64, 64)
    check()
    attn.bfloat16().float()
    check()
    attn.v.weight.data = 3 * attn.v.weight.data  # of the same size, in other memory
    check()
    original, attn = attn, pickle.loads(pickle.dumps(attn))
    attn.q.weight.data.mul_(2)
    check()
    attn = original
    check()


@pytest.mark.parametrize("made_for_inference", [False, True])
@pytest.mark.parametrize("used_for_inference", [False, True])
def test_parameters_may_be_made_and_used_in_inference_mode(made_for_inference: bool, used_for_inference: bool) -> None:
    with torch.inference_mode(made_for_inference):
        attn = Attention(DiTConfig(dim=64, num_heads=2)).requires_grad_(False)
    h = torch.randn(3, 5, 64)
    expected = torch.cat([attn.q(h), attn.k(h), attn.v(h)], -1)
    with torch.inference_mode(used_for_inference):
        for _ in range(2):
            torch.testing.assert_close(attn.qkv(h), expected, atol=1e-5, rtol=0)


@pytest.mark.whole
@torch.inference_mode()
def test_a_pass_is_one_graph(small_dit: lolrt.CausalDiT, rollout_inputs: dict[str, torch.Tensor]) -> None:
    """torch.compile takes a pass without a graph break, and the graph gives the same result as the pass."""
    stream = lolrt.LatentStream(small_dit, rollout_inputs["prompt_embeds"], 8, 8)
    next(stream)
    inputs = stream.session.pending()
    expected, written = small_dit(inputs).clone(), inputs.write_table.long()
    pages = [layer[written] for layer in inputs.layer_pages]
    for layer in inputs.layer_pages:
        layer[written] = torch.nan
    compiled = torch.compile(small_dit.forward, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs), expected, atol=1e-5, rtol=0)
    for layer, before in zip(inputs.layer_pages, pages, strict=True):
        torch.testing.assert_close(layer[written], before, atol=1e-5, rtol=0)
