"""UMT5 from Wan's and transformers' files, against transformers' own; embeddings that are encoded once and kept."""

from __future__ import annotations

import gc
import json
import weakref
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lolrt
from lolrt import pipeline
from lolrt.checkpoint import read_component
from lolrt.checkpoint.names import to_wan
from lolrt.checkpoint.synth import synth
from lolrt.cli import main
from lolrt.text import embeddings, umt5
from lolrt.text.umt5 import CachedUMT5, UMT5Encoder, clean

# transformers alone takes seconds to import: what needs it does it, not this file.
pytestmark = [
    pytest.mark.whole,
    *(pytest.mark.skipif(not find_spec(name), reason=f"no {name}") for name in ("transformers", "tokenizers", "ftfy")),
]

TEXT = "a red blue car boat by the sea & 'quoted' at night noon over hills"
WORDS = ["<pad>", "</s>", "<unk>", *dict.fromkeys(TEXT.split())]
PROMPTS = ["a red car by the sea", "a blue boat", "over the hills at night " * 6, "unheard of"]

# Relative to the standard deviation of the outputs.
FP32_MAX = 5e-5

CONFIGS = {
    "plain": dict(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2),
    "attention wider than the model": dict(d_model=48, d_kv=24, d_ff=80, num_layers=3, num_heads=3),
    "few buckets": dict(d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=5, relative_attention_num_buckets=8),
}


def reference(sizes: dict[str, int], seed: int = 0):
    import transformers

    config = transformers.UMT5Config(vocab_size=len(WORDS), feed_forward_proj="gated-gelu", tie_word_embeddings=True, **sizes)
    model = transformers.UMT5EncoderModel(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if "layer_norm" in name else noise * parameter.shape[-1] ** -0.5
    model.encoder.embed_tokens.weight = model.shared.weight
    return model.eval()


def wan_names(model) -> dict[str, torch.Tensor]:
    tensors = model.state_dict()
    return {ours: tensors[theirs].clone() for theirs, ours in to_wan("text_encoder", tensors).items()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A folder with a tokenizer of whole words, which ends a prompt as UMT5's does."""
    folder = tmp_path_factory.mktemp("umt5")
    import tokenizers
    import transformers

    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    ).save_pretrained(folder)
    return folder


def save(model, folder: Path, layout: str, dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir(exist_ok=True)
    if layout == "transformers":
        model.to(dtype).save_pretrained(folder / "text_encoder")
        return folder / "text_encoder"
    torch.save({name: tensor.to(dtype) for name, tensor in wan_names(model).items()}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    return folder / "models_t5_umt5-xxl-enc-bf16.pth"


@torch.inference_mode()
def expected_rows(model, tokenizer: Path, prompt: str) -> torch.Tensor:
    """As Wan's pipelines do it: padded to 512 tokens, with a mask, and the padding's rows cut off."""
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(tokenizer)(
        [prompt], padding="max_length", max_length=512, truncation=True, return_tensors="pt"
    )
    rows = model(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
    return rows[: int(tokens.attention_mask.sum())]


@pytest.mark.parametrize("layout", ["Wan", "transformers"])
@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_are_those_of_transformers(name, layout, tokenizer, tmp_path):
    model = reference(CONFIGS[name])
    encoder = UMT5Encoder(read_component(save(model, tmp_path, layout), "text_encoder"), tokenizer)
    for prompt, rows in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        expected = expected_rows(model, tokenizer, prompt)
        assert rows.shape == expected.shape and rows.shape[0] == len(prompt.split()) + 1
        assert (rows - expected).abs().max() <= FP32_MAX * expected.std()


def test_a_whole_umt5_in_pickled_shards_gives_its_encoder(tokenizer, tmp_path):
    """As google/umt5-xxl is published: encoder and decoder, and no safetensors."""
    model = reference(CONFIGS["plain"])
    import transformers

    whole = transformers.UMT5ForConditionalGeneration(model.config)
    tensors = whole.state_dict() | model.state_dict()
    assert len(tensors) > 2 * len(model.state_dict()), "most tensors are the decoder's"
    places = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(tensors)}
    for place in set(places.values()):
        torch.save({name: tensors[name].clone() for name in tensors if places[name] == place}, tmp_path / place)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    torch.save({"a": Path("no tensor")}, tmp_path / "training_args.bin")
    (rows,) = UMT5Encoder(read_component(tmp_path, "text_encoder"), tokenizer).encode(PROMPTS[:1])
    expected = expected_rows(model, tokenizer, PROMPTS[0])
    assert (rows - expected).abs().max() <= FP32_MAX * expected.std()


def test_pickles_beside_safetensors_of_the_same_weights_are_left_out(tokenizer, tmp_path):
    folder = save(reference(CONFIGS["plain"]), tmp_path, "transformers")
    torch.save(reference(CONFIGS["plain"], seed=1).state_dict(), folder / "pytorch_model.bin")
    assert read_component(tmp_path, "text_encoder").source == folder / "model.safetensors"


def test_a_prompt_of_more_than_512_tokens_is_refused(tokenizer, tmp_path):
    encoder = UMT5Encoder(read_component(save(reference(CONFIGS["plain"]), tmp_path, "Wan"), "text_encoder"), tokenizer)
    (rows,) = encoder.encode(["sea " * 511])  # and the token that ends it
    assert rows.shape == (512, 32)
    with pytest.raises(lolrt.PromptError, match="has 513 tokens; the model takes 512: shorten it"):
        encoder.encode(["a car", "sea " * 512])


def test_bfloat16_files_are_used_as_they_are(tokenizer, tmp_path):
    model = reference(CONFIGS["plain"])
    encoder = UMT5Encoder(read_component(save(model, tmp_path, "Wan", torch.bfloat16), "text_encoder"), tokenizer)
    (rows,) = encoder.encode(PROMPTS[:1])
    assert rows.dtype == torch.bfloat16
    expected = expected_rows(model, tokenizer, PROMPTS[0])
    assert (rows.float() - expected).square().mean().sqrt() < 0.03 * expected.std()


def test_text_is_cleaned_as_wans_is():
    assert clean("  a\tred &amp;amp; \n car ") == "a red & car"
    assert clean("the sea\u2019s \ufb01sh") == "the sea's fish"


@pytest.fixture
def source(tokenizer, tmp_path) -> Path:
    return save(reference(CONFIGS["plain"]), tmp_path / "model", "Wan")


@pytest.fixture
def loads(monkeypatch) -> list[weakref.ref]:
    """A weak reference to each encoder that was loaded."""
    made: list[weakref.ref] = []
    initialise = UMT5Encoder.__init__

    def record(self, *arguments) -> None:
        initialise(self, *arguments)
        made.append(weakref.ref(self._model))

    monkeypatch.setattr(umt5.UMT5Encoder, "__init__", record)
    return made


def test_a_prompt_is_encoded_once_and_the_encoder_is_let_go(source, tokenizer, loads, tmp_path):
    cached = CachedUMT5(source, tokenizer, tmp_path / "cache")
    first = cached.encode(PROMPTS[:2])
    gc.collect()
    assert len(loads) == 1 and loads[0]() is None
    assert torch.equal(cached(" a  blue boat\n"), first[1]), "the same text once it is cleaned"
    again = CachedUMT5(source, tokenizer, tmp_path / "cache").encode([PROMPTS[1], PROMPTS[0]])
    assert len(loads) == 1
    assert torch.equal(again[0], first[1]) and torch.equal(again[1], first[0])
    mixed = cached.encode([PROMPTS[2], PROMPTS[0]])
    assert len(loads) == 2 and torch.equal(mixed[1], first[0]) and len(mixed[0]) == 31
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_another_encoder_or_tokenizer_does_not_share_embeddings(source, tokenizer, loads, tmp_path):
    mine = CachedUMT5(source, tokenizer, tmp_path / "cache").encode(PROMPTS[:1])
    other = save(reference(CONFIGS["plain"], seed=1), tmp_path / "other", "Wan")
    theirs = CachedUMT5(other, tokenizer, tmp_path / "cache").encode(PROMPTS[:1])
    assert len(loads) == 2 and not torch.equal(mine[0], theirs[0])
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for path in tokenizer.iterdir():
        (folder / path.name).write_text(path.read_text().replace('"car": 6', '"car": 7').replace('"boat": 7', '"boat": 6'))
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["boat"] == 6
    CachedUMT5(source, folder, tmp_path / "cache").encode(PROMPTS[:1])
    assert len(loads) == 3
    moved = source.rename(tmp_path / "elsewhere.pth")
    CachedUMT5(moved, tokenizer, tmp_path / "cache").encode(PROMPTS[:1])
    assert len(loads) == 3, "where a file lies does not matter"


def test_a_damaged_entry_of_the_cache_is_made_again(source, tokenizer, loads, tmp_path):
    cached = CachedUMT5(source, tokenizer, tmp_path / "cache")
    first = cached.encode(PROMPTS[:1])
    (entry,) = (tmp_path / "cache").iterdir()
    sound = entry.read_bytes()
    metadata = {"lolrt.sha256": "0" * 64}
    damages = [
        lambda: entry.write_bytes(sound[:-10]),
        lambda: entry.write_bytes(sound[:-3] + bytes([sound[-3] ^ 1]) + sound[-2:]),
        lambda: save_file({"rows": first[0] * float("nan")}, entry),
        lambda: save_file({"rows": first[0].reshape(-1)}, entry, metadata),
        lambda: save_file({"rows": first[0].view(torch.int32)}, entry, metadata),
    ]
    for i, damage in enumerate(damages):
        damage()
        assert torch.equal(cached.encode(PROMPTS[:1])[0], first[0]) and len(loads) == 2 + i
    assert entry.read_bytes() == sound


def test_a_cache_that_cannot_be_written_is_told_and_costs_no_encoding(source, tokenizer, tmp_path):
    (tmp_path / "blocked").write_text("a file, where a folder should be")
    with pytest.warns(UserWarning, match="choose another place for the cache with LOLRT_CACHE") as told:
        rows = CachedUMT5(source, tokenizer, tmp_path / "blocked").encode(PROMPTS[:2])
    assert len(told) == 1
    expected = CachedUMT5(source, tokenizer, tmp_path / "cache").encode(PROMPTS[:2])
    assert all(torch.equal(a, b) for a, b in zip(rows, expected, strict=True))


def test_what_is_wrong_with_a_model_is_told(source, tokenizer, tmp_path):
    tensors = torch.load(source, weights_only=True)
    del tensors["blocks.1.ffn.fc2.weight"]
    torch.save(tensors, tmp_path / "broken.pth")
    with pytest.raises(lolrt.CheckpointError, match=r"missing: encoder\.block\.1\.layer\.1\.DenseReluDense\.wo\.weight"):
        UMT5Encoder(read_component(tmp_path / "broken.pth", "text_encoder"), tokenizer)
    for text, hint in (
        (None, "does not exist"),
        ("{}", "no vocabulary"),
        ('{"model": {"vocab": {"a": 1}}}', "no tokenizer that can be read"),
    ):
        if text is not None:
            (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(lolrt.CheckpointError, match=hint):
            UMT5Encoder(read_component(source, "text_encoder"), tmp_path)
    with pytest.raises(lolrt.Error, match="has a UMT5 text encoder and no tokenizer"):
        lolrt.load_text(source)


def test_a_model_finds_its_encoder_and_the_users_cache(source, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LOLRT_CACHE", str(tmp_path / "own"))
    (tmp_path / "model.toml").write_text(f'text_encoder = "{source}"\ntokenizer = "{tokenizer}"\n')
    rows = lolrt.load_text(tmp_path / "model.toml")("a red car")
    assert rows.shape == (4, 32)
    (entry,) = (tmp_path / "own" / "text").iterdir()
    assert torch.equal(load_file(entry)["rows"], rows)


@pytest.mark.parametrize("place", ["model", "added_tokens"])
def test_a_tokenizer_with_tokens_that_the_encoder_has_no_row_for_is_refused(place, model, tokenizer, tmp_path, capsys):
    (tmp_path / "wide").mkdir()
    values = json.loads((tokenizer / "tokenizer.json").read_text())
    if place == "model":
        values["model"]["vocab"]["zebra"] = len(WORDS)
    else:
        values["added_tokens"].append({**values["added_tokens"][0], "id": len(WORDS), "content": "<zebra>"})
    (tmp_path / "wide" / "tokenizer.json").write_text(json.dumps(values))
    model.write_text(model.read_text().replace(str(tokenizer), str(tmp_path / "wide")))
    hint = f"tokens up to number {len(WORDS)}, and the text encoder a table of {len(WORDS)} rows"
    assert main(["encode", "a red car", "-o", str(tmp_path / "t.safetensors"), "--model", str(model)]) == 2
    assert hint in capsys.readouterr().err
    assert main(["inspect", str(model)]) == 0
    told = capsys.readouterr().out
    assert hint in told and "nothing is missing" not in told


def test_nothing_but_tokenizer_json_is_looked_at_in_its_folder(source, tokenizer, loads, tmp_path, monkeypatch):
    """Neither is code of the folder's run, nor are weights that lie there read to make the cache's key."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    expected = CachedUMT5(source, folder, tmp_path / "cache").encode(PROMPTS[:1])
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}')
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with open(folder / "pytorch_model.bin", "wb") as file:
        file.truncate(1 << 42)  # sparse
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    assert torch.equal(CachedUMT5(source, folder, tmp_path / "cache").encode(PROMPTS[:1])[0], expected[0]) and len(loads) == 1
    assert torch.equal(CachedUMT5(source, folder, tmp_path / "other").encode(PROMPTS[:1])[0], expected[0]) and len(loads) == 2
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def model(source, tokenizer, tmp_path) -> Path:
    """A whole model with a UMT5 encoder, and one without it beside, other.toml."""
    sizes = {"dim": 64, "num_heads": 2, "ffn_dim": 96, "num_layers": 1, "text_dim": 32, "vae": {"dim": 8}, "height": 64, "width": 64}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    folder = synth(tmp_path / "random", str(tmp_path / "sizes.json"))
    both = f'dit = "{folder}"\nvae = "{folder}"\nheight = 64\nwidth = 64\n'
    (tmp_path / "other.toml").write_text(both)
    (tmp_path / "model.toml").write_text(f'{both}text_encoder = "{source}"\ntokenizer = "{tokenizer}"\n')
    return tmp_path / "model.toml"


def resident(file: Path) -> int:
    """Bytes of a file that are in the process's memory, as the system counts them: pages around those that were touched are among them."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            counts = line.endswith(str(file))
        elif counts and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def test_all_prompts_are_encoded_and_the_encoder_is_gone_before_the_dit_is_loaded(model, source, loads, tmp_path, monkeypatch):
    monkeypatch.setenv("LOLRT_CACHE", str(tmp_path / "own"))
    (tmp_path / "script.txt").write_text("0 a red car\n0.5 a blue boat\n")
    load_dit, told = pipeline.load_dit, []

    def load(*arguments, **options):
        told.append(([weight() for weight in loads], resident(source)))
        return load_dit(*arguments, **options)

    monkeypatch.setattr(pipeline, "load_dit", load)
    made = ["--script", str(tmp_path / "script.txt"), "--frames", "12", "--threads", "1"]
    assert main(["generate", *made, "-o", str(tmp_path / "a.mp4"), "--model", str(model)]) == 0
    ((encoders, kept),) = told
    assert encoders == [None] and kept < 0.5 * source.stat().st_size, "one encoder was loaded, and neither it nor its file is in memory"
    assert len(loads) == 1, "the second prompt was not encoded on the way"


def test_what_was_encoded_serves_where_there_is_no_encoder(model, source, tmp_path, monkeypatch):
    monkeypatch.setenv("LOLRT_CACHE", str(tmp_path / "own"))
    text, made = tmp_path / "text.safetensors", ["a red car", "--frames", "9", "--threads", "1"]
    assert main(["encode", "a red car", "a blue boat", "-o", str(text), "--model", str(model)]) == 0
    assert main(["generate", *made, "-o", str(tmp_path / "a.mp4"), "--model", str(model)]) == 0
    source.unlink()
    monkeypatch.setenv("LOLRT_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(umt5, "_transformers", lambda: pytest.fail("transformers were asked for"))
    assert main(["generate", *made, "-o", str(tmp_path / "b.mp4"), "--model", str(tmp_path / "other.toml"), "--text", str(text)]) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_file_of_embeddings_stands_in_for_the_encoder(tmp_path, tiny):
    prompts = list(tiny.example_prompts[:2])
    embeddings.write_embeddings(tmp_path / "e.safetensors", dict(zip(prompts, tiny.encode_text.encode(prompts), strict=True)))
    pipe = lolrt.load("tiny", text=lolrt.EmbeddingFile(tmp_path / "e.safetensors"))
    stream, expected = pipe.stream(prompts[0]), tiny.stream(prompts[0])
    for source in (stream, expected):
        next(source)
        source.set_prompt(prompts[1])
    assert torch.equal(next(stream).frames, next(expected).frames)
    with pytest.raises(lolrt.PromptError, match="no embedding of 'a unicorn', only of 'a red balloon"):
        stream.set_prompt("a unicorn")
    save_file({"0": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("other.safetensors", "nothing.safetensors"):
        with pytest.raises(lolrt.CheckpointError, match="no file of embeddings"):
            lolrt.EmbeddingFile(tmp_path / name)


def test_a_file_of_embeddings_with_a_changed_byte_is_refused(tmp_path):
    path = tmp_path / "e.safetensors"
    embeddings.write_embeddings(path, {"a red car": torch.ones(3, 8), "a blue car": torch.full((2, 8), 2.0)})
    whole = path.read_bytes()
    assert lolrt.EmbeddingFile(path).encode(["a blue car"])[0].eq(2).all()
    for at in (len(whole) - 1, len(whole) - 100, whole.index(b"blue")):  # in each embedding, and in a prompt
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(lolrt.CheckpointError, match=r"damaged.*write it anew"):
            lolrt.EmbeddingFile(path)
