from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from ed_train.errors import ConfigError
from ed_train.models.export import write_single_file
from ed_train.models.load import SdModel
from ed_train.models.reference import ModelReference, check_model
from ed_train.models.shapes import configuration_of
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel


def folder_model(folder: Path) -> SdModel:
    return SdModel(ModelReference("folder", str(folder)))


def file_model(path: Path, config: Path) -> SdModel:
    reference, found = check_model(str(path), base=path.parent, model_config=str(config))
    assert reference is not None, found
    return SdModel(reference)


def assert_same(module: torch.nn.Module, expected: torch.nn.Module) -> None:
    state, wanted = module.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wanted[name].float()), name


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(state)
    save_file(state, path, metadata={"format": "pt"})


@pytest.fixture
def single_file(sd1: Path, tmp_path: Path) -> Path:
    """`sd1` as one .safetensors file in float32."""
    model = folder_model(sd1)
    path = tmp_path / "single" / "model.safetensors"
    parts = {"unet": model.load_unet(), "text_encoder": model.load_text_encoder(), "vae": model.load_vae()}
    write_single_file(path, **parts, dtype=torch.float32)
    return path


def as_ckpt(path: Path, **more: object) -> Path:
    ckpt = path.with_suffix(".ckpt")
    torch.save({"state_dict": load_file(path), "global_step": 3, **more}, ckpt)
    return ckpt


def test_each_part_of_a_folder(sd1: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd1)
    model = folder_model(sd1)
    assert_same(model.load_unet(), pipeline.unet)
    assert_same(model.load_text_encoder(), pipeline.text_encoder)
    assert_same(vae := model.load_vae(), pipeline.vae)
    assert not any(p.requires_grad for p in vae.parameters())
    tokenizer = model.load_tokenizer()
    assert tokenizer("a Cat").input_ids == pipeline.tokenizer("a Cat").input_ids
    assert tokenizer.model_max_length == 77


def test_half_precision_weights_become_float32(own_sd1: Path) -> None:
    for part, cls in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel), ("vae", AutoencoderKL)):
        cls.from_pretrained(own_sd1 / part).half().save_pretrained(own_sd1 / part)
    model = folder_model(own_sd1)
    for module in (model.load_unet(), model.load_text_encoder(), model.load_vae()):
        assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_weights_that_are_only_there_as_the_fp16_variant(own_sd1: Path, sd1: Path) -> None:
    for path in own_sd1.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert check_model(str(own_sd1), base=own_sd1, model_config=None)[1] == []
    model, original = folder_model(own_sd1), folder_model(sd1)
    assert_same(model.load_unet(), original.load_unet())
    assert_same(model.load_text_encoder(), original.load_text_encoder())


def test_weights_that_are_only_there_as_bin(own_sd1: Path, sd1: Path) -> None:
    for path in list(own_sd1.rglob("*.safetensors")):
        name = "pytorch_model.bin" if path.parent.name == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    assert check_model(str(own_sd1), base=own_sd1, model_config=None)[1] == []
    model, original = folder_model(own_sd1), folder_model(sd1)
    assert_same(model.load_unet(), original.load_unet())
    assert_same(model.load_text_encoder(), original.load_text_encoder())


def test_weights_in_shards(own_sd1: Path, sd1: Path) -> None:
    for part, cls in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        loaded = cls.from_pretrained(own_sd1 / part)
        next((own_sd1 / part).glob("*.safetensors")).unlink()
        loaded.save_pretrained(own_sd1 / part, max_shard_size="20KB")
        assert len(list((own_sd1 / part).glob("*.safetensors"))) > 1
    assert check_model(str(own_sd1), base=own_sd1, model_config=None)[1] == []
    model, original = folder_model(own_sd1), folder_model(sd1)
    assert_same(model.load_unet(), original.load_unet())
    assert_same(model.load_text_encoder(), original.load_text_encoder())
    assert model.tensor_digests("text_encoder")[0] == original.tensor_digests("text_encoder")[0]
    before = model.fingerprint("unet")
    last = sorted((own_sd1 / "unet").glob("*.safetensors"))[-1]
    edit_weights(last, lambda state: next(iter(state.values())).add_(1))
    assert folder_model(own_sd1).fingerprint("unet") != before
    last.write_bytes(last.read_bytes()[:-1])
    (problem,) = check_model(str(own_sd1), base=own_sd1, model_config=None)[1]
    assert f'"{last}": the file is truncated' in problem


@pytest.mark.parametrize(("folder", "prediction"), [("sd1", "epsilon"), ("sd2", "v_prediction")])
def test_noise_schedule_of_the_model(folder: str, prediction: str, request: pytest.FixtureRequest) -> None:
    model = folder_model(request.getfixturevalue(folder))
    assert model.scheduler_config()["_class_name"] == "PNDMScheduler"
    scheduler = model.load_noise_scheduler()
    assert type(scheduler) is DDPMScheduler
    assert scheduler.config.prediction_type == model.scheduler_config()["prediction_type"] == prediction
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(0.00466, abs=1e-5)


def test_zero_terminal_snr(sd1: Path, sd2: Path) -> None:
    scheduler = folder_model(sd2).load_noise_scheduler(zero_terminal_snr=True)
    assert scheduler.alphas_cumprod[-1].item() == 0.0
    assert folder_model(sd2).scheduler_config(zero_terminal_snr=True)["timestep_spacing"] == "trailing"
    assert folder_model(sd1).scheduler_config(zero_terminal_snr=True)["timestep_spacing"] == "leading"


@pytest.mark.parametrize(
    ("trained", "kept"),
    [
        ({"prediction_type": "epsilon"}, (".safetensors",)),
        ({"prediction_type": "v_prediction"}, (".safetensors",)),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, (".safetensors", ".yaml")),
        ({"prediction_type": "v_prediction", "beta_start": 0.001, "beta_end": 0.02}, (".ckpt", ".yaml")),
    ],
)
def test_a_single_file_says_itself_how_its_model_predicts(trained, kept, single_file, own_sd1) -> None:
    """Its configuration, which is that of any model of its kind, would have it trained as what it is not."""
    model, config = folder_model(own_sd1), own_sd1 / "scheduler" / "scheduler_config.json"
    parts = {"unet": model.load_unet(), "text_encoder": model.load_text_encoder(), "vae": model.load_vae()}
    write_single_file(single_file, **parts, scheduler_config={**model.scheduler_config(), **trained}, replace=True)
    path = as_ckpt(single_file) if ".ckpt" in kept else single_file
    for other in {".safetensors", ".yaml"} - {*kept}:
        single_file.with_suffix(other).unlink(missing_ok=True)
    opposite = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[trained["prediction_type"]]
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": opposite}))
    reference = ModelReference("file", str(path), str(own_sd1))
    for read in (SdModel(reference), configuration_of(reference)):  # of a run, and of --check
        scheduler = read.load_noise_scheduler()
        assert {key: scheduler.config[key] for key in trained} == trained
        assert (scheduler.alphas_cumprod[-1] == 0) == ("rescale_betas_zero_snr" in trained)


@pytest.mark.parametrize("content", ["a: [", "model: 3", "model: {params: {linear_start: x, linear_end: 1}}", "\x00"])
def test_another_yaml_beside_a_single_file_says_nothing(content, single_file, sd1) -> None:
    single_file.with_suffix(".yaml").write_text(content)
    assert file_model(single_file, sd1).scheduler_config() == folder_model(sd1).scheduler_config()


def test_scheduler_config_without_a_prediction_type_means_epsilon(own_sd1: Path) -> None:
    path = own_sd1 / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    del config["prediction_type"]
    path.write_text(json.dumps(config))
    assert folder_model(own_sd1).scheduler_config()["prediction_type"] == "epsilon"


def test_who_changes_the_file_does_not_change_the_weights(own_sd1: Path, sd1: Path) -> None:
    model = folder_model(own_sd1)
    unet, text_encoder = model.load_unet(), model.load_text_encoder()
    for path in own_sd1.rglob("*.safetensors"):
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(bytes(path.stat().st_size // 2))
    original = folder_model(sd1)
    assert_same(unet, original.load_unet())
    assert_same(text_encoder, original.load_text_encoder())


def test_loading_leaves_the_folder_alone(sd1: Path) -> None:
    before = {p: (p.read_bytes() if p.is_file() else None) for p in sd1.rglob("*")}
    model = folder_model(sd1)
    model.load_unet(), model.load_text_encoder(), model.load_vae(), model.load_tokenizer(), model.fingerprint("vae")
    assert {p: (p.read_bytes() if p.is_file() else None) for p in sd1.rglob("*")} == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_nan_weights(part: str, value: float, own_sd1: Path) -> None:
    path = next((own_sd1 / part).glob("*.safetensors"))
    name = sorted(load_file(path))[0]
    edit_weights(path, lambda state: state[name].view(-1)[-1:].fill_(value))
    model = folder_model(own_sd1)
    load = {"unet": model.load_unet, "text_encoder": model.load_text_encoder, "vae": model.load_vae}[part]
    shown = name.removeprefix("text_model.")
    with pytest.raises(ConfigError, match=rf"{own_sd1}: {part} has NaN or infinite weights: (text_model\.)?{shown}"):
        load()


def test_large_weights_whose_sum_overflows_are_not_taken_for_infinite_ones(own_sd1: Path) -> None:
    path = own_sd1 / "unet" / "diffusion_pytorch_model.safetensors"
    edit_weights(path, lambda state: state["conv_in.weight"].fill_(3e38))
    assert folder_model(own_sd1).load_unet().conv_in.weight.max() > 2e38


@pytest.mark.parametrize(("part", "load"), [("unet", SdModel.load_unet), ("text_encoder", SdModel.load_text_encoder)])
def test_missing_tensors_are_not_made_up(part: str, load: Callable[[SdModel], object], own_sd1: Path) -> None:
    path = next((own_sd1 / part).glob("*.safetensors"))
    name = sorted(load_file(path))[0]
    edit_weights(path, lambda state: state.pop(name))
    with pytest.raises(ConfigError, match=rf"{path} lacks (text_model\.)?{name.removeprefix('text_model.')}"):
        load(folder_model(own_sd1))


def test_tensors_of_another_shape(own_sd1: Path) -> None:
    path = own_sd1 / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cross_attention_dim": 24}))
    with pytest.raises(ConfigError, match=r"unet cannot be loaded: .*attn2") as caught:
        folder_model(own_sd1).load_unet()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["tokenizer", "scheduler"])
def test_broken_small_files(part: str, own_sd1: Path) -> None:
    name = {"tokenizer": "vocab.json", "scheduler": "scheduler_config.json"}[part]
    (own_sd1 / part / name).write_text("{")
    model = folder_model(own_sd1)
    with pytest.raises(ConfigError, match=f"{part} cannot be loaded: "):
        model.load_tokenizer() if part == "tokenizer" else model.load_noise_scheduler()


def test_nothing_is_printed(
    sd1: Path, single_file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", logging.DEBUG)
    for model in (folder_model(sd1), file_model(single_file, sd1)):
        model.load_unet(), model.load_text_encoder(), model.load_vae(), model.load_tokenizer()
        model.load_noise_scheduler()
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.DEBUG


@pytest.mark.slow
def test_a_fresh_process_prints_nothing_and_imports_no_pipeline(sd1: Path) -> None:
    code = """
import sys
from ed_train.models.load import SdModel
from ed_train.models.reference import ModelReference
model = SdModel(ModelReference("folder", sys.argv[1]))
model.load_unet(), model.load_text_encoder(), model.load_vae(), model.load_tokenizer(), model.load_noise_scheduler()
print([name for name in sys.modules if name.endswith("pipeline_stable_diffusion")])
"""
    result = subprocess.run([sys.executable, "-c", code, str(sd1)], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_fingerprints_tell_parts_and_contents_apart(sd1: Path, own_sd1: Path, sd2: Path) -> None:
    parts = ("vae", "text_encoder", "tokenizer")
    first, same, other = ([folder_model(f).fingerprint(p) for p in parts] for f in (sd1, own_sd1, sd2))
    assert first == same
    assert len(set(first + other[:2])) == 5
    assert first[2] == other[2]
    edit_weights(own_sd1 / "vae" / "diffusion_pytorch_model.safetensors", lambda s: s["quant_conv.bias"].add_(1))
    (own_sd1 / "tokenizer" / "merges.txt").write_text("#version: 0.2\na t</w>\n")
    changed = [folder_model(own_sd1).fingerprint(p) for p in parts]
    assert [a == b for a, b in zip(first, changed, strict=True)] == [False, True, False]


def test_what_a_checkpoint_can_copy(own_sd1: Path, single_file: Path, sd1: Path) -> None:
    model = folder_model(own_sd1)
    assert model.copyable("vae") == own_sd1 / "vae"
    assert model.copyable("tokenizer") == own_sd1 / "tokenizer"
    (own_sd1 / "vae" / "diffusion_pytorch_model.safetensors").rename(own_sd1 / "vae" / "x.fp16.safetensors")
    (own_sd1 / "tokenizer" / "merges.txt").unlink()
    assert model.copyable("vae") is None
    assert model.copyable("tokenizer") is None
    assert file_model(single_file, sd1).copyable("vae") is None


def test_what_was_damaged_is_not_copied_and_a_whole_copy_takes_its_place(own_sd1: Path, sd1: Path) -> None:
    model = folder_model(own_sd1)
    (own_sd1 / "vae" / "config.json").write_text("{")
    (own_sd1 / "tokenizer" / "merges.txt").write_text("")
    for name in ("vocab.json", "tokenizer.json"):
        (own_sd1 / "tokenizer" / name).unlink(missing_ok=True)
    assert (model.copyable("vae"), model.copyable("tokenizer")) == (None, None)
    with pytest.raises(ConfigError, match="tokenizer has no vocabulary"):
        model.load_tokenizer()
    model.spare = sd1
    assert (model.copyable("vae"), model.copyable("tokenizer")) == (sd1 / "vae", sd1 / "tokenizer")
    model.load_vae()
    assert model.load_tokenizer()("a cat")["input_ids"] == folder_model(sd1).load_tokenizer()("a cat")["input_ids"]


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_each_part_of_a_single_file(kind: str, single_file: Path, sd1: Path) -> None:
    path = single_file if kind == "safetensors" else as_ckpt(single_file)
    model, original = file_model(path, sd1), folder_model(sd1)
    assert model.folder is None
    assert model.scheduler_config()["prediction_type"] == "epsilon"
    assert_same(model.load_text_encoder(), original.load_text_encoder())
    assert_same(model.load_unet(), original.load_unet())
    assert_same(model.load_vae(), original.load_vae())
    assert model.load_tokenizer()("a cat").input_ids == original.load_tokenizer()("a cat").input_ids
    assert model.load_noise_scheduler().config.beta_end == 0.012


def test_every_tokenizer_is_one_of_its_own(sd1: Path) -> None:
    """The loader's thread has one while samples use another: fast tokenizers fail when two threads use one."""
    model = folder_model(sd1)
    assert model.load_tokenizer() is not model.load_tokenizer()


def test_the_parts_of_a_single_file_are_read_together_and_once(
    single_file: Path, sd1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    real = StableDiffusionPipeline.from_single_file
    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", lambda *a, **k: reads.append(a) or real(*a, **k))
    model = file_model(single_file, sd1)
    vae = model.fingerprint("vae")
    unet = model.load_unet()
    model.load_text_encoder(), model.load_vae(), model.load_noise_scheduler()
    assert (len(reads), model.fingerprint("vae")) == (1, vae)
    assert model.load_unet() is not unet
    assert len(reads) == 2
    model.close()
    model.load_noise_scheduler()
    assert len(reads) == 2
    model.load_text_encoder()
    assert len(reads) == 3


def test_fingerprint_of_a_single_file_depends_on_its_content_alone(
    single_file: Path, sd1: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copy(single_file, tmp_path / "other.safetensors"))
    config = Path(shutil.copytree(sd1, tmp_path / "config"))
    first, second = file_model(single_file, sd1), file_model(moved, config)
    for part in ("vae", "text_encoder", "tokenizer"):
        assert first.fingerprint(part) == second.fingerprint(part)
    assert folder_model(sd1).fingerprint("vae") == first.fingerprint("vae"), "a resume would encode everything again"
    edit_weights(moved, lambda state: state["first_stage_model.decoder.conv_in.bias"].add_(1))
    assert file_model(moved, config).fingerprint("vae") == first.fingerprint("vae"), "latents do not depend on it"
    edit_weights(moved, lambda state: state["first_stage_model.quant_conv.bias"].add_(1))
    changed = file_model(moved, sd1)
    assert changed.fingerprint("vae") != first.fingerprint("vae")
    assert changed.fingerprint("text_encoder") == first.fingerprint("text_encoder")
    edit_config = json.loads((config / "vae" / "config.json").read_text())
    (config / "vae" / "config.json").write_text(json.dumps({**edit_config, "norm_num_groups": 2}))
    assert folder_model(config).fingerprint("vae") != first.fingerprint("vae")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.diffusion_model.out.2.bias", "lacks weights that its configuration asks for"),
        ("first_stage_model.quant_conv.bias", "lacks weights that its configuration asks for"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            r"text_encoder lacks .*final_layer_norm\.bias",
        ),
    ],
)
def test_single_file_that_lacks_a_tensor(name: str, message: str, single_file: Path, sd1: Path) -> None:
    edit_weights(single_file, lambda state: state.pop(name))
    with pytest.raises(ConfigError, match=message):
        file_model(single_file, sd1).load_text_encoder()


def test_single_file_with_the_configuration_of_another_model(single_file: Path, sd2: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*expected shape") as caught:
        file_model(single_file, sd2).load_unet()
    assert "\n" not in str(caught.value)


def test_single_file_without_the_hub_says_how_to_go_on(single_file: Path, offline_hub: Path) -> None:
    model = SdModel(ModelReference("file", str(single_file)))
    with pytest.raises(ConfigError, match=r"resume_ckpt: .*; set model_config to a diffusers folder") as caught:
        model.load_unet()
    assert "\n" not in str(caught.value)


class _Payload:
    """What an attacker would pickle: unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_ckpt_pickle_with_foreign_globals_lists_them_and_runs_nothing(
    single_file: Path, sd1: Path, tmp_path: Path
) -> None:
    path = as_ckpt(single_file, callbacks={_Payload(tmp_path / "owned"): 1})
    with pytest.raises(ConfigError, match=r"wants to run posix\.mkdir; nothing in it was run"):
        file_model(path, sd1).load_unet()
    assert not (tmp_path / "owned").exists()


def test_bin_pickle_with_foreign_globals_lists_them_and_runs_nothing(own_sd1: Path, tmp_path: Path) -> None:
    weights = own_sd1 / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({**load_file(weights), "x": _Payload(tmp_path / "owned")}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ConfigError, match=r"wants to run posix\.mkdir; nothing in it was run"):
        folder_model(own_sd1).load_unet()
    assert not (tmp_path / "owned").exists()


def test_ckpt_that_hides_its_globals_is_still_not_run(single_file: Path, sd1: Path, tmp_path: Path) -> None:
    """Even where the list of globals is fooled, diffusers reads with weights_only."""
    path = as_ckpt(single_file, x=_Payload(tmp_path / "owned"))
    model = file_model(path, sd1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "get_unsafe_globals_in_checkpoint", lambda path: [])
        with pytest.raises(ConfigError, match="cannot be loaded"):
            model.load_unet()
    assert not (tmp_path / "owned").exists()


def test_a_bare_pickle_is_refused_unread(tmp_path: Path, sd1: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps(_Payload(tmp_path / "owned")))
    with pytest.raises(ConfigError, match="cannot be read as a torch checkpoint"):
        SdModel(ModelReference("file", str(path), str(sd1))).load_unet()
    assert not (tmp_path / "owned").exists()


def test_a_zip_that_is_no_checkpoint(tmp_path: Path, sd1: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ConfigError, match="cannot be read as a torch checkpoint"):
        file_model(tmp_path / "model.ckpt", sd1).load_unet()


def cache(folder: Path, hub: Path) -> Path:
    """Put a diffusers folder into a hub cache as someone/micro."""
    repository = hub / "models--someone--micro"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    return Path(shutil.copytree(folder, repository / "snapshots" / ("a" * 40)))


def test_hub_repository_that_is_in_the_cache(sd1: Path, offline_hub: Path) -> None:
    cached = cache(sd1, offline_hub)
    model = SdModel(ModelReference("hub", "someone/micro"))
    assert_same(model.load_unet(), folder_model(sd1).load_unet())
    assert model.copyable("vae") == cached / "vae"
    (cached / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"resume_ckpt: someone/micro: .*unet.* has no weights"):
        SdModel(ModelReference("hub", "someone/micro"))


def test_model_config_from_the_hub_is_checked_before_it_is_used(
    single_file: Path, sd1: Path, offline_hub: Path
) -> None:
    cached = cache(sd1, offline_hub)
    model = SdModel(ModelReference("file", str(single_file), "someone/micro"))
    assert_same(model.load_unet(), folder_model(sd1).load_unet())
    index = json.loads((cached / "model_index.json").read_text())
    (cached / "model_index.json").write_text(json.dumps({**index, "unet": ["os", "system"]}))
    with pytest.raises(ConfigError, match="unet wants code from outside"):
        SdModel(ModelReference("file", str(single_file), "someone/micro")).load_unet()


def test_hub_repository_without_the_network(offline_hub: Path) -> None:
    with pytest.raises(ConfigError, match=r"someone/micro cannot be fetched from the hub: .*; give a local") as caught:
        SdModel(ModelReference("hub", "someone/micro"))
    assert "\n" not in str(caught.value)
