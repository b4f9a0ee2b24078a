"""What part 4's second page measures inside: sensitivity, separations, readings, and the words for them."""

import llamas
import pytest
import torch

from safebook import defences_inside as inside
from safebook.errors import InputError
from safebook.llama_sensitivity import sensitivity
from safebook.subspaces import gain, row_projection


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sensitivity_is_the_slope_of_the_largest_logit_alone_and_in_a_padded_batch():
    """Against finite differences in float64 of one sequence at a time."""
    network = llamas.model().double().eval()
    sequences = [[1, 9, 10, 11], [1, 12], [1, 13, 14]]
    found = sensitivity(network, sequences, batch=3)
    table = network.get_input_embeddings()
    for tokens, value in zip(sequences, found):
        start = table(torch.tensor([tokens])).detach()

        def top(embeddings):
            logits = network(inputs_embeds=embeddings).logits[0, -1]
            return float(logits.max() - logits.mean())

        slope = torch.zeros_like(start)
        for place in range(len(tokens) - 1):  # the last token, which decides, is left out
            for unit in range(start.shape[-1]):
                step = torch.zeros_like(start)
                step[0, place, unit] = 1e-3
                with torch.no_grad():
                    slope[0, place, unit] = (top(start + step) - top(start - step)) / 2e-3
        assert float(value) == pytest.approx(float(slope.norm()), rel=5e-3)


def test_sensitivity_needs_a_token_before_the_last():
    with pytest.raises(InputError, match="sequences"):
        sensitivity(llamas.model(), [[1]])


def test_a_shift_of_all_prompts_leaves_the_own_separation_and_moves_tau_in_another_models_clusters():
    """What a lock would do if nothing came after it."""
    allowed = torch.randn(2, 12, 16, generator=generator()) + 1
    forbidden = torch.randn(2, 12, 16, generator=generator(1)) - 1
    centre = inside.means_of(allowed, [0, 1, 2]), inside.means_of(forbidden, [0, 1, 2])
    before = inside.apart(allowed, forbidden, *centre)
    shift = -(centre[0] - centre[1])[:, None].float()
    moved = allowed + shift, forbidden + shift
    own = [inside.means_of(x, [0, 1, 2]) for x in moved]
    for x, y in zip(before, inside.apart(*moved, *own)):
        assert y["separation"] == pytest.approx(x["separation"], rel=5e-3)
    for x, y in zip(before, inside.apart(*moved, *centre)):
        assert y["tau_allowed"] < 0 < x["tau_allowed"] and y["tau_forbidden"] < 0


def test_clusters_without_a_difference_are_not_apart():
    same = torch.randn(1, 400, 8, generator=generator())
    half = inside.means_of(same, list(range(100))), inside.means_of(same, list(range(100, 200)))
    found = inside.apart(same[:, 200:300], same[:, 300:], *half)[0]
    assert abs(found["separation"]) < 0.1 and abs(found["accuracy"] - 0.5) < 0.15


def test_preference_is_the_ratio_of_paper_one_and_random_updates_have_none():
    allowed, forbidden = (torch.randn(9, 8, generator=generator(i)) for i in (0, 1))
    before, reads = torch.zeros(20, 8), torch.nn.functional.normalize(forbidden.mean(0), dim=0)
    after = before + torch.outer(torch.ones(20), reads)
    found = inside.preference(after, before, allowed, forbidden, 40, generator(2))
    for name, measure in (("projection", row_projection), ("gain", gain)):
        expected = torch.log2(measure(after, forbidden).mean() / measure(after, allowed).mean())
        assert found[name]["measured"] == pytest.approx(float(expected), rel=1e-6)
        assert found[name]["low"] < 0 < found[name]["high"]
    assert found["gain"]["measured"] > 0
    assert inside.preference(before, before, allowed, forbidden, 4, generator()) == {}


def test_words_for_what_is_brought_back():
    assert inside.brought_back(0.9, 0.5, 1.0) == pytest.approx(0.8)
    assert inside.brought_back(0.9, 0.95, 1.0) is None  # hardly anything lost
    assert inside.brought_back(-0.1, -0.3, -0.1) is None  # nothing was there
    assert inside.verdict(0.9, 0.6) == "restores both"
    assert inside.verdict(0.9, 0.1).startswith("goes round")
    assert inside.verdict(0.1, 0.9).startswith("keeps the clusters")
    assert inside.verdict(0.1, 0.1) == "restores neither"
    assert "refusals" in inside.verdict(None, 0.5) and "separation" in inside.verdict(0.5, None)


def test_unknown_arms_are_named_before_any_training():
    with pytest.raises(InputError, match="arm"):
        inside.fine_tune("nothing", "level1_10", "smoke", 0)


def test_harmless_rows_have_the_form_of_the_harmful_ones_and_no_forbidden_request():
    from safebook.chat_profiles import chat_profile
    from safebook.worlds import chat_data
    from safebook.worlds.chat import ChatWorld

    world = ChatWorld(chat_profile("smoke").world)
    rows = inside.harmless_rows(world, 10, 0)
    harmful = chat_data.explicitly_harmful(world, 10, generator())
    assert [m["role"] for m in rows[0]] == [m["role"] for m in harmful[0]]
    assert rows[0][0] == harmful[0][0]
    allowed = set(world.ask(world.requests("fine_tuning", "benign")))
    assert all(row[1]["content"] in allowed for row in rows)
