"""The tokenizer in ComfyUI's files of a text encoder, against the sentencepiece package and transformers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import layouts
import pytest
import torch
from packings import E4M3
from safetensors.torch import save_file
from spieces import CORPUS, train

import lolrt
from lolrt.checkpoint import find_files, read_component
from lolrt.checkpoint.spiece import MOST_BYTES, tokenizer_of
from lolrt.checkpoint.synth import synth
from lolrt.cli import main
from lolrt.text.umt5 import UMT5Encoder, clean

NEEDED = ("sentencepiece", "google.protobuf", "tokenizers", "transformers", "ftfy")
pytestmark = [pytest.mark.whole, *(pytest.mark.skipif(not find_spec(name.split(".")[0]), reason=f"no {name}") for name in NEEDED)]

ODD = [
    " ", "  ", "\t", "\n", "▁", "🙂", "👨‍👩‍👧", "日", "ﬁ", "e\u0301", "é", "\u200b", "\u00a0", "\u3000", "½", "Å", "مرحبا", "한국", "\0",
    "\x1b", "\ufeff", "#", "№", "①", "ǆ", "\U0010fffd", "﷽", "…", "'", '"', "<", "&", "A", "ß", "İ", "\u202e", "क्ष",
]  # fmt: skip


# Except marks after a letter that is itself normalised, such as a ligature: tokenizers, and so transformers, leave such a letter as it is.
def texts(count: int) -> list[str]:
    """Texts of words that the model was trained on, and odd characters, side by side and apart."""
    draw = random.Random(0)
    words = [*{word for line in CORPUS for word in line.split()}, *ODD]
    words.sort()
    return ["".join(draw.choice(words) + draw.choice(["", "", " "]) for _ in range(draw.randrange(9))) for _ in range(count)]


def as_tensor(model: bytes) -> torch.Tensor:
    return torch.tensor(list(model), dtype=torch.uint8)


@pytest.fixture(scope="module", params=[True, False], ids=["byte fallback", "unknown pieces"])
def model(request, tmp_path_factory) -> bytes:
    return train(tmp_path_factory.mktemp("spiece"), byte_fallback=request.param, user_defined_symbols=["<extra>"])


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    return train(tmp_path_factory.mktemp("spiece"))


def read(model: bytes):
    import tokenizers

    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_of(as_tensor(model), Path("x"))))


def test_texts_have_the_tokens_of_sentencepiece(model):
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = read(model)
    for text in [*CORPUS[:4], *texts(4000), *(chr(i) for i in range(0x3000))]:
        assert ours.encode(text).ids == [*theirs.encode(text), 1], repr(text)


def test_plain_texts_have_the_tokens_of_transformers(model, tmp_path):
    """Also if a text contains the name of a token: it gets that token, which SentencePiece would spell out."""
    import transformers

    (tmp_path / "spiece.model").write_bytes(model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, tokenizer_type="t5", extra_ids=0)
    ours = read(model)
    for text in ["a red car by the sea", " the  boat ", "noon", "sails over</s> hills", "<unk> noon"]:
        assert ours.encode(text).ids == theirs(text).input_ids, repr(text)


@pytest.mark.parametrize(
    "option", [{"add_dummy_prefix": False}, {"remove_extra_whitespaces": False}, {"normalization_rule_name": "nfkc_cf"}]
)
def test_what_the_normalizer_is_told_is_followed(option, tmp_path):
    import sentencepiece

    model = train(tmp_path, **option)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=model), read(model)
    for text in ["a red  car ", "  The SEA", "noon"]:
        assert ours.encode(text).ids == [*theirs.encode(text), 1], repr(text)


def encoder(folder: Path, model: bytes, form: str, prefix: str = "", above: str = "") -> Path:
    """A text encoder with transformers' names, as Comfy-Org repackages it. prefix: before its names; above: before the tokenizer's."""
    tensors = layouts.as_diffusers("text_encoder", layouts.text_encoder_tensors())
    del tensors["encoder.embed_tokens.weight"]
    if form == "fp16":
        file = {name: tensor.half() for name, tensor in tensors.items()}
    else:
        file = {"scaled_fp8": torch.zeros(2).to(E4M3)}
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and ("SelfAttention" in name or "DenseReluDense" in name) and "bias" not in name:
                scale = tensor.abs().max() / 448
                file |= {name: (tensor / scale).to(E4M3), f"{name.removesuffix('weight')}scale_weight": scale}
            else:
                file[name] = tensor.half()
    folder.mkdir(exist_ok=True)
    path = folder / f"umt5_xxl_{form}.safetensors"
    save_file({**{prefix + name: tensor for name, tensor in file.items()}, f"{above}spiece_model": as_tensor(model)}, path)
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("form", ["fp16", "fp8_e4m3fn_scaled"])
def test_the_path_alone_is_an_encoder(form, small, tmp_path, capsys, monkeypatch):
    """Its rows are those that its weights give for SentencePiece's tokens, and a converted folder gives the same."""
    import sentencepiece

    monkeypatch.setenv("LOLRT_CACHE", str(tmp_path / "cache"))
    path = encoder(tmp_path / "model", small, form)
    prompt = "a red boat, ﬁve 日本語 🙂"
    rows = lolrt.load_text(path)(prompt)
    component = read_component(path, "text_encoder")
    ids = [*sentencepiece.SentencePieceProcessor(model_proto=small).encode(clean(prompt)), 1]
    by_ids = UMT5Encoder(component, None)._model(torch.tensor([ids])).last_hidden_state[0]
    assert torch.equal(rows, by_ids)
    told = said(capsys, "inspect", path)
    assert "tokenizer  in this file" in told and "complete   every tensor" in told and "its tokenizer" not in told
    said(capsys, "convert", path, tmp_path / "converted")
    assert find_files(tmp_path / "converted").tokenizer == tmp_path / "converted" / "tokenizer"
    assert torch.equal(lolrt.load_text(tmp_path / "converted")(prompt), rows)


@pytest.mark.parametrize("prefix, above", [("umt5xxl.transformer.", ""), ("text_encoders.umt5xxl.transformer.", "text_encoders.")])
def test_it_is_found_above_the_encoder_in_a_file_of_a_pipeline(prefix, above, small, tmp_path):
    path = encoder(tmp_path, small, "fp16", prefix, above)
    component = read_component(path, "text_encoder")
    assert component.wrapped and component.tokenizer() == tokenizer_of(as_tensor(small), path)
    assert component.tensors.keys() == layouts.text_encoder_tensors().keys()


def test_one_in_another_branch_is_none_of_the_encoders(small, tmp_path):
    path = encoder(tmp_path, small, "fp16", "umt5xxl.", "clip_l.")
    assert read_component(path, "text_encoder").tokenizer is None
    with pytest.raises(lolrt.CheckpointError, match="has a UMT5 text encoder and no tokenizer"):
        lolrt.load_text(path)


def test_shards_and_a_pickle_hold_it_too(small, tmp_path):
    tensors = layouts.as_diffusers("text_encoder", layouts.text_encoder_tensors()) | {"spiece_model": as_tensor(small)}
    layouts.save_sharded(tmp_path / "shards", tensors)
    torch.save(tensors, tmp_path / "x.pth")
    for path in (tmp_path / "shards", tmp_path / "x.pth"):
        assert read_component(path, "text_encoder").tokenizer()["model"]["type"] == "Unigram"


def test_a_tokenizer_json_comes_first(small, tmp_path):
    path = encoder(tmp_path / "model", small, "fp16")
    (tmp_path / "model" / "tokenizer").mkdir()
    vocabulary = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "red": 1, "?": 2}, "unk_token": "?"}}
    vocabulary["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    (tmp_path / "model" / "tokenizer" / "tokenizer.json").write_text(json.dumps(vocabulary))
    files = find_files(tmp_path / "model")
    assert len(UMT5Encoder(read_component(files, "text_encoder"), files.tokenizer).encode(["red a car"])[0]) == 3
    assert len(UMT5Encoder(read_component(path, "text_encoder"), None).encode(["red"])[0]) > 1


def test_one_with_more_tokens_than_the_encoder_has_rows_is_refused(small, tmp_path, capsys):
    more = b"".join(b"\x0a\x06\x0a\x04%04d" % i for i in range(301 - read(small).get_vocab_size()))
    path = encoder(tmp_path, small + more, "fp16")
    hint = "tokens up to number 300, and the text encoder a table of 300 rows"
    assert hint in said(capsys, "inspect", path)
    with pytest.raises(lolrt.CheckpointError, match=hint):
        lolrt.load_text(path)


def message(change: Callable[..., object]) -> Callable[[bytes], bytes]:
    """The model with a change, made through its own schema of protocol buffers."""

    def changed(model: bytes) -> bytes:
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        change(proto)
        return proto.SerializeToString()

    return changed


def set_piece(number: int, **fields: object) -> Callable[[bytes], bytes]:
    return message(lambda proto: [setattr(proto.pieces[number], name, value) for name, value in fields.items()])


def rules(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return message(lambda proto: setattr(proto.normalizer_spec, "precompiled_charsmap", change(proto.normalizer_spec.precompiled_charsmap)))


def shortened(whole: bytes) -> bytes:
    """The file without its last texts."""
    return whole[: whole.rindex(b"\0", 0, -5000) + 1]


DAMAGED = "is damaged or not SentencePiece's file"
MALFORMED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda _: b"", r"a spiece_model of uint8 \[0\]; expected the bytes"),
    "cut off": (lambda model: model[:-100], f"{DAMAGED}.*ends behind its end"),
    "zeros": (lambda _: bytes(100), "has 0 pieces"),
    "text": (lambda _: b"no model at all", DAMAGED),
    "a number without end": (lambda model: model + b"\x08" + b"\xff" * 20, f"{DAMAGED}.*does not end"),
    "a length beyond all": (lambda model: model + b"\x0a" + b"\xff" * 8 + b"\x7f", f"{DAMAGED}.*ends behind its end"),
    "a group": (lambda model: model + b"\x0b", f"{DAMAGED}.*of kind 3"),
    "a piece that is a number": (lambda model: model + b"\x08\x01", f"{DAMAGED}.*a number stands where bytes should"),
    "a type that is bytes": (lambda model: model + b"\x0a\x05\x0a\x01x\x1a\x00", f"{DAMAGED}.*bytes stand where a number should"),
    "a score of 8 bytes": (lambda model: model + b"\x0a\x0c\x0a\x01z\x11" + bytes(8), f"{DAMAGED}.*a score of it is no number"),
    "a piece that is no text": (lambda model: model + b"\x0a\x03\x0a\x01\xff", f"{DAMAGED}.*no UTF-8"),
    "a piece without a text": (lambda model: model + b"\x0a\x00", "has pieces that are empty"),
    "a piece twice": (set_piece(9, piece="</s>"), "or that come twice"),
    "a type that is none": (lambda model: model + b"\x0a\x05\x0a\x01\x7f\x18\x09", "has pieces of kinds that are none"),
    "one byte": (set_piece(9, type=6), "pieces for some bytes and not for all"),
    "NaN": (set_piece(9, score=float("nan")), "has scores that are not finite"),
    "no unknown piece": (set_piece(2, type=3), "has no piece for what it does not know"),
    "no end": (message(lambda proto: setattr(proto.trainer_spec, "eos_piece", "\x1b[2J")), "or none that ends a text"),
    "BPE": (message(lambda proto: setattr(proto.trainer_spec, "model_type", 2)), "of kind BPE; expected a unigram model"),
    "a kind that is none": (lambda model: model + b"\x12\x02\x18\x63", "of kind 99; expected a unigram model"),
    "spaces behind words": (message(lambda proto: setattr(proto.trainer_spec, "treat_whitespace_as_suffix", True)), "do not begin with"),
    "spaces that are none": (message(lambda proto: setattr(proto.normalizer_spec, "escape_whitespaces", False)), "do not begin with"),
    "rules that are none": (rules(lambda _: b"abc"), "has rules of normalisation of 3 bytes"),
    "rules that are cut off": (rules(lambda whole: whole[:5000]), "has rules of normalisation of 5,000 bytes"),
    "rules that lead out of their trie": (rules(lambda whole: whole[:4] + b"\0\xfc\xff\x0f" + whole[8:]), "lead out of their trie"),
    "rules that lead to no text": (rules(shortened), "lead to no text of theirs"),
    "rules to half a letter": (rules(lambda whole: shortened(whole) + "é".encode() * 2500), "lead to no text of theirs"),
    "rules whose texts are none": (rules(lambda whole: whole[:-1] + b"\xff"), "texts are no UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_damaged_or_not_known_is_one_clear_line(name, small, tmp_path, capsys):
    change, hint = MALFORMED[name]
    path = encoder(tmp_path, change(small), "fp16")
    with pytest.raises(lolrt.CheckpointError, match=hint) as error:
        lolrt.load_text(path)("a red car")
    assert str(path) in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 500
    assert main(["encode", "a red car", "-o", str(tmp_path / "t.safetensors"), "--model", str(path)]) == 2
    assert capsys.readouterr().err == f"lolrt: {error.value}\n"
    assert all(line.isprintable() for line in said(capsys, "inspect", path).splitlines())


def test_a_tensor_that_is_no_bytes_is_refused():
    for tensor in (torch.zeros(3), torch.empty(MOST_BYTES + 1, dtype=torch.uint8, device="meta")):
        with pytest.raises(lolrt.CheckpointError, match="expected the bytes of SentencePiece's file, uint8"):
            tokenizer_of(tensor, Path("x"))


def test_the_rules_of_a_tokenizer_json_are_checked_too(small, tmp_path):
    """The package tokenizers ends the process if they are broken."""
    path = encoder(tmp_path / "model", small, "fp16")
    values = tokenizer_of(as_tensor(small), path)
    assert values["normalizer"]["normalizers"][0].pop("precompiled_charsmap")
    values["normalizer"]["normalizers"][0]["precompiled_charsmap"] = "AAAA"
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(lolrt.CheckpointError, match=r"tokenizer\.json has rules of normalisation of 3 bytes"):
        lolrt.load_text(tmp_path / "model")


def test_a_pipeline_with_such_an_encoder_makes_video_and_so_does_what_convert_makes_of_it(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOLRT_CACHE", str(tmp_path / "cache"))
    sizes = {"dim": 64, "num_heads": 2, "ffn_dim": 96, "num_layers": 1, "text_dim": 32, "vae": {"dim": 8}, "height": 64, "width": 64}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    model = synth(tmp_path / "random", str(tmp_path / "sizes.json"))
    text = encoder(tmp_path / "text", small, "fp8_e4m3fn_scaled")
    parts = f'dit = "{model}"\nvae = "{model}"\ntext_encoder = "{text}"\nheight = 64\nwidth = 64\n[sampler]\ntimesteps = [1000]\n'
    (tmp_path / "model.toml").write_text(parts)
    said(capsys, "convert", tmp_path / "model.toml", tmp_path / "out", "--dtype", "fp8_scaled")
    for i, path in enumerate((tmp_path / "model.toml", tmp_path / "out")):
        assert "nothing is missing for a pipeline" in said(capsys, "inspect", path)
        assert "3 frames" in said(capsys, "generate", "a red boat", "-o", tmp_path / f"{i}.mp4", "--frames", 3, "--model", path)
