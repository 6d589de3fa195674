"""Every kind of bad spec, given to the command: one line with file, line and key, exit code 2, nothing written."""

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from entscale_jax import cli

GOOD = """\
sweep:
  name: good
  model: MODEL
  sizes: [64x48, 32x32]
  methods: [original, entropy]
  prompts: [a red circle, a blue square]
  seeds: [0, 3]
  sampler: {name: ddim, steps: 2, guidance: 5.0}
  batch: 2
  metrics: [objects]
"""
PROMPTS = "[a red circle, a blue square]"
METHODS = "[original, entropy]"

BAD = {
    # name of the kind: (what stands there, what is put in its place, line, what the line says)
    "an unknown key": ("sizes:", "sises:", 4, "unknown key 'sises': did you mean 'sizes'?"),
    "an unknown key of the sampler": ("steps:", "stesp:", 8, "unknown key 'stesp': did you mean 'steps'?"),
    "an unknown key of the prompts": (PROMPTS, "{scenes: 2, sed: 1}", 6, "unknown key 'sed': did you mean 'seed'?"),
    "an unknown key of the seeds": ("[0, 3]", "{first: 0, last: 2}", 7, "unknown key 'last': use one of first"),
    "an unknown key of a method": (METHODS, "[{rul: fixed}]", 5, "methods[0]: unknown key 'rul'"),
    "a key that is a number": ("batch: 2", "3: 2", 9, "unknown key 3"),
    "a key twice": ("batch: 2", "name: two", 9, "key 'name' stands here twice"),
    "no name": ("  name: good\n", "", 1, "key 'name' is missing"),
    "no model": ("  model: MODEL\n", "", 1, "key 'model' is missing"),
    "no sizes": ("  sizes: [64x48, 32x32]\n", "", 1, "key 'sizes' is missing"),
    "no methods": (f"  methods: {METHODS}\n", "", 1, "key 'methods' is missing"),
    "no prompts": (f"  prompts: {PROMPTS}\n", "", 1, "key 'prompts' is missing"),
    "model and models": ("batch: 2", "models: [a]", 1, "both model and models are given"),
    "a name with a slash": ("name: good", "name: ../good", 2, "name is '../good'"),
    "a name with two lines": ("name: good", 'name: "good\\nbad"', 2, "name is 'good\\nbad'"),
    "a name that is a command": ("name: good", "name: $(touch pwned)", 2, "name is '$(touch pwned)'"),
    "a name that is a number": ("name: good", "name: 7", 2, "name is 7"),
    "an empty name": ("name: good", "name: ''", 2, "name is ''"),
    "a hidden name": ("name: good", "name: .git", 2, "name is '.git'"),
    "a model that is a list": ("model: MODEL", "model: [a]", 3, "model is ['a']"),
    "a model that is missing": ("MODEL", "./nowhere/model", 3, "model folder './nowhere/model' does not exist"),
    "no size at all": ("[64x48, 32x32]", "[]", 4, "sizes: this list is empty"),
    "sizes that are a word": ("[64x48, 32x32]", "64x48", 4, "sizes is '64x48': give a list"),
    "sizes that are a table": ("[64x48, 32x32]", "{a: 64x48}", 4, "sizes is {'a': '64x48'}: give a list"),
    "a size of one number": ("64x48", "64", 4, "sizes[0]: size 64 is not WIDTHxHEIGHT"),
    "a size of nothing": ("64x48", "0x48", 4, "sizes[0]: size '0x48' has no pixels"),
    "a negative size": ("64x48", "-64x48", 4, "sizes[0]: size '-64x48' is not WIDTHxHEIGHT"),
    "a size of three": ("64x48", "64x48x3", 4, "sizes[0]: size '64x48x3' is not WIDTHxHEIGHT"),
    "a size below a latent cell": ("32x32", "2x64", 4, "sizes[1]: size 2x64 with model"),
    "a size of one token": ("32x32", "4x4", 4, "sizes[1]: size 4x4 with model"),
    "sizes within themselves": ("[64x48, 32x32]", "&a [*a]", 4, "sizes[0]: size"),
    "an unknown rule": ("entropy]", "entropi]", 5, "methods[1]: unknown rule 'entropi': did you mean 'entropy'?"),
    "a baseline that is misspelt": ("entropy]", "resise]", 5, "methods[1]: unknown rule 'resise': did you mean"),
    "a baseline as a rule": ("entropy]", "{rule: resize}]", 5, "methods[1]: 'resize' is no rule but a baseline: write"),
    "an unknown baseline": ("entropy]", "{baseline: crop}]", 5, "methods[1]: unknown baseline 'crop': use one of"),
    "a baseline that is a rule": ("entropy]", "{baseline: entropy}]", 5, "methods[1]: unknown baseline 'entropy'"),
    "a baseline that is a list": ("entropy]", "{baseline: [resize]}]", 5, "methods[1]: unknown baseline ['resize']"),
    "an unknown option of a baseline": (
        "entropy]",
        "{baseline: multidiffusion, strid: 8}]",
        5,
        "methods[1]: baseline multidiffusion has no option 'strid': it has stride, at_once",
    ),
    "an option of resize": ("entropy]", "{baseline: resize, stride: 8}]", 5, "'stride': it has none"),
    "a stride of nothing": ("entropy]", "{baseline: multidiffusion, stride: 0}]", 5, "methods[1]: stride is 0"),
    "a stride that is a truth": ("entropy]", "{baseline: multidiffusion, stride: yes}]", 5, "stride is 'yes'"),
    "a stride with gaps": ("entropy]", "{baseline: multidiffusion, stride: 9}]", 5, "methods[1]: stride 9 leaves gaps"),
    "no window at once": ("entropy]", "{baseline: multidiffusion, at_once: 0}]", 5, "methods[1]: at_once is 0"),
    "upscale without an upscaler": ("entropy]", "upscale]", 5, "methods[1]: baseline upscale needs a model that"),
    "an upscaler without upscale": (
        "entropy]",
        "{upscaler: MODEL}]",
        5,
        "methods[1]: unknown key 'upscaler' of a method: write {baseline: upscale, upscaler: FOLDER}",
    ),
    "an upscaler of resize": ("entropy]", "{baseline: resize, upscaler: a}]", 5, "no option 'upscaler': it has none"),
    "an upscaler at the top": ("batch: 2", "upscaler: a", 9, "unknown key 'upscaler'"),
    "an upscaler that is missing": (
        "entropy]",
        "{baseline: upscale, upscaler: ./nowhere/model}]",
        5,
        "methods[1]: model folder './nowhere/model' does not exist",
    ),
    "an upscaler that draws": (
        "entropy]",
        "{baseline: upscale, upscaler: MODEL}]",
        5,
        "is a StableDiffusionPipeline: implemented are StableDiffusionUpscalePipeline, LDMSuperResolutionPipeline",
    ),
    "fixed without a multiplier": ("entropy]", "fixed]", 5, "methods[1]: rule 'fixed' needs its multiplier"),
    "a multiplier of an entropy": ("entropy]", "{rule: entropy, multiplier: 2}]", 5, "methods[1]: "),
    "a negative multiplier": ("entropy]", "{rule: fixed, multiplier: -1}]", 5, "methods[1]: multiplier is -1"),
    "a multiplier that is a word": ("entropy]", "{rule: fixed, multiplier: big}]", 5, "methods[1]: multiplier"),
    "too many multipliers": ("entropy]", "{rule: fixed, multiplier: [1, 1, 1]}]", 5, "methods[1]: "),
    "calibrated without E_T": ("entropy]", "calibrated]", 5, "methods[1]: "),
    "E_T of no layer": ("entropy]", "{rule: calibrated, train_entropy: {a: 1.0}}]", 5, "methods[1]: "),
    "E_T in a file that is missing": (
        "entropy]",
        "{rule: calibrated, train_entropy: e.json}]",
        5,
        "methods[1]: train_entropy: ",
    ),
    "E_T in a file elsewhere": (
        "entropy]",
        "{rule: calibrated, train_entropy: /etc/passwd}]",
        5,
        "methods[1]: '/etc/passwd' lies outside",
    ),
    "no prompt at all": (PROMPTS, "[]", 6, "prompts: this list is empty"),
    "an empty prompt": (PROMPTS, "[a red circle, '']", 6, "prompts[1] is '': give a text"),
    "a prompt that is a number": (PROMPTS, "[a red circle, 3]", 6, "prompts[1] is 3"),
    "a prompt that is nothing": (PROMPTS, "[a red circle, ~]", 6, "prompts[1] is None"),
    "a prompt that objects can't read": (PROMPTS, "[a red horse]", 6, "prompts: metric objects can't read"),
    "a file of prompts that is missing": (PROMPTS, "missing.txt", 6, "prompts: "),
    "a file of prompts that is empty": (PROMPTS, "empty.txt", 6, "empty.txt has no caption"),
    "a file of prompts that is no text": (PROMPTS, "binary.txt", 6, "binary.txt can't be read"),
    "a file of prompts above": (PROMPTS, "../captions.txt", 6, "prompts: '../captions.txt' lies outside"),
    "a file of prompts elsewhere": (PROMPTS, "/etc/passwd", 6, "prompts: '/etc/passwd' lies outside"),
    "a file of prompts by a link": (PROMPTS, "link.txt", 6, "prompts: 'link.txt' lies outside"),
    "a file of prompts that is hidden": (PROMPTS, ".secret", 6, "prompts: '.secret' is a hidden file"),
    "a file of prompts with a zero byte": (PROMPTS, '"a\\0b.txt"', 6, "prompts: 'a\\x00b.txt' is no path"),
    "a column that is missing": (PROMPTS, "{parquet: c.parquet, column: text, count: 1}", 6, "no column 'text'"),
    "more prompts than there are": (PROMPTS, "{parquet: c.parquet, count: 9}", 6, "has 2 captions and count is 9"),
    "no Parquet": (PROMPTS, "{parquet: empty.txt, count: 1}", 6, "can't be read as Parquet"),
    "Parquet elsewhere": (PROMPTS, "{parquet: ../c.parquet, count: 1}", 6, "'../c.parquet' lies outside"),
    "an empty folder of Parquet": (PROMPTS, "{parquet: nothing, count: 1}", 6, "nothing holds no .parquet file"),
    "a column of numbers": (PROMPTS, "{parquet: c.parquet, column: n, count: 1}", 6, "column 'n' of"),
    "a folder that is missing": (PROMPTS, "{folder: gone, count: 1}", 6, "gone is no folder"),
    "a folder that is a file": (PROMPTS, "{folder: captions.txt, count: 1}", 6, "captions.txt is no folder"),
    "a folder without pictures": (PROMPTS, "{folder: nothing, count: 1}", 6, "has 0 captions and count is 1"),
    "a folder elsewhere": (PROMPTS, "{folder: .., count: 1}", 6, "prompts: '..' lies outside"),
    "a folder without count": (PROMPTS, "{folder: nothing}", 6, "key 'prompts.count' is missing"),
    "a folder misspelt": (PROMPTS, "{foldr: nothing, count: 1}", 6, "unknown key 'foldr': did you mean 'folder'?"),
    "no count": (PROMPTS, "{parquet: c.parquet}", 6, "key 'prompts.count' is missing"),
    "scenes without end": (
        PROMPTS,
        "{scenes: 99999999}",
        6,
        "prompts.scenes: 99999999 captions are asked for, and 6852",
    ),
    "no scene": (PROMPTS, "{scenes: 0}", 6, "prompts.scenes is 0"),
    "a negative seed": ("[0, 3]", "[-1]", 7, "seeds[0] is -1"),
    "a seed beyond 31 bits": ("[0, 3]", "[2147483648]", 7, "seeds[0] is 2147483648"),
    "a seed of many digits": ("[0, 3]", f"[{'9' * 5000}]", 7, "a number of too many digits"),
    "a seed that is a word": ("[0, 3]", "[one]", 7, "seeds[0] is 'one'"),
    "a seed that is a truth": ("[0, 3]", "[true]", 7, "seeds[0] is True"),
    "seeds that are a number": ("[0, 3]", "0", 7, "seeds is 0: give a list"),
    "an unknown sampler": ("ddim", "heun", 8, "sampler.name is 'heun'"),
    "no step": ("steps: 2", "steps: 0", 8, "sampler.steps is 0"),
    "too many steps": ("steps: 2", "steps: 1001", 8, "sampler.steps is 1001"),
    "half a step": ("steps: 2", "steps: 2.5", 8, "sampler.steps is 2.5"),
    "guidance without end": ("5.0", ".inf", 8, "sampler.guidance is inf"),
    "guidance below 0": ("5.0", "-1.0", 8, "sampler.guidance is -1.0"),
    "a batch of nothing": ("batch: 2", "batch: 0", 9, "batch: 0 is neither auto nor a whole number"),
    "a batch that is a word": ("batch: 2", "batch: many", 9, "batch: 'many' is neither auto"),
    "workers that are a word": ("batch: 2", "workers: all", 9, "workers: 'all' is neither auto"),
    "a training size of one number": ("batch: 2", "train_size: 64", 9, "train_size: size 64 is not WIDTHxHEIGHT"),
    "an unknown kind of device": ("batch: 2", "device: {kind: cuda}", 9, "device.kind is 'cuda'"),
    "an unknown key of the device": ("batch: 2", "device: {knd: gpu}", 9, "unknown key 'knd': did you mean 'kind'?"),
    "three TPU chips": ("batch: 2", "device: {kind: tpu, per_worker: 3}", 9, "device: per_worker is 3"),
    "memory of a CPU": ("batch: 2", "device: {kind: cpu, memory_fraction: 0.5}", 9, "device: memory_fraction is of"),
    "more memory than there is": ("batch: 2", "device: {memory_fraction: 2.0}", 9, "device.memory_fraction is 2.0"),
    "devices that would idle": ("batch: 2", "device: {per_worker: 2.0}", 9, "device.per_worker is 2 and sharding"),
    "an unknown sharding": ("batch: 2", "sharding: columns", 9, "sharding: unknown sharding 'columns'"),
    "sharding of one device": ("batch: 2", "sharding: rows", 9, "sharding is rows and a worker has one device"),
    "an unknown metric": ("[objects]", "[fidd]", 10, "metrics[0]: unknown metric 'fidd'"),
    "a distance without its network": ("[objects]", "[fid]", 10, "metrics: metric fid needs the file of Inception's"),
    "crops without their network": ("[objects]", "[patch_fid]", 10, "metrics: metric patch_fid needs the file of"),
    "a score without its network": ("[objects]", "[clip]", 10, "metrics: metric clip needs a CLIP model"),
    "a limit of no method": ("batch: 2", "limits: {resize: 2}", 9, "limits names 'resize', no method here"),
    "a limit of nothing": ("batch: 2", "limits: {entropy: 0}", 9, "limits.entropy"),
    "an unknown network": (
        "[objects]",
        "[]\n  extractors: {vgg: a.pth}",
        11,
        "unknown key 'vgg': use one of inception",
    ),
    "Inception's weights that are missing": (
        "[objects]",
        "[clip, fid]\n  extractors:\n    clip: TINY_CLIP\n    inception: nofile.pth",
        13,
        "extractors.inception: Inception weights 'nofile.pth' do not exist: give the file",
    ),
    "Inception's weights of another format": (
        "[objects]",
        "[kid]\n  extractors: {inception: c.parquet}",
        11,
        "extractors.inception: Inception weights 'c.parquet' end in '.parquet': read are .safetensors, .pth",
    ),
    "Inception's weights that are no pickle": (
        "[objects]",
        "[patch_fid]\n  extractors: {inception: parquet.pth}",
        11,
        "extractors.inception: parquet.pth can't be read as weights of PyTorch",
    ),
    "Inception's weights of another network": (
        "[objects]",
        "[fid]\n  extractors: {inception: MODEL/vae/diffusion_pytorch_model.safetensors}",
        11,
        "missing key Conv2d_1a_3x3.bn.bias",
    ),
    "a CLIP that is missing": (
        "[objects]",
        "[clip]\n  extractors: {clip: ./nowhere/clip}",
        11,
        "extractors.clip: model folder './nowhere/clip' does not exist: give transformers' folder",
    ),
    "a CLIP of an empty folder": ("[objects]", "[clip]\n  extractors: {clip: specs/nothing}", 11, "config.json"),
    "a CLIP that is a text encoder": (
        "[objects]",
        "[clip]\n  extractors: {clip: MODEL/text_encoder}",
        11,
        "extractors.clip: CLIPModel: model_type='clip_text_model': implemented is 'clip'",
    ),
    "a CLIP without its weights": (
        "[objects]",
        "[clip]\n  extractors: {clip: clip}",
        11,
        "extractors.clip: clip/model.safetensors is missing",
    ),
    "metrics that are a word": ("[objects]", "objects", 10, "metrics is 'objects': give a list"),
    "a tab": ("  seeds", "\tseeds", 7, "this is no valid YAML"),
    "a bracket that stays open": ("[0, 3]", "[0, 3", 8, "this is no valid YAML"),
    "a tag that would run": ("[0, 3]", "!!python/object/apply:os.system ['touch pwned']", 7, "this is no valid YAML"),
    "an alias of nothing": ("[0, 3]", "*seeds", 7, "this is no valid YAML"),
    "a key that is a list": ("batch: 2", "? [a]\n  : 2", 9, "this is no valid YAML"),
    "a control character": ("a red circle", "a red \x07 circle", 6, "this is no valid YAML"),
    "a tag of another truth": ("batch: 2", "batch: !!bool x", 9, "this is no valid YAML: 'x' is no !!bool"),
    "a tag of another time": ("batch: 2", "batch: !!timestamp x", 9, "this is no valid YAML: 'x' is no !!timestamp"),
    "a tag of a number of no digits": ("batch: 2", "batch: !!int ''", 9, "this is no valid YAML: '' is no !!int"),
    "a tag of another number": ("[0, 3]", "[0,\n    !!float a]", 8, "this is no valid YAML: 'a' is no !!float"),
    "a tag of a key": ("batch: 2", "!!int two: 2", 9, "this is no valid YAML: 'two' is no !!int"),
    "nesting without end": (PROMPTS, "[" * 3000, 1, "nested too deeply"),
    "a list at the top": (GOOD, "- a\n", 1, "the file holds no keys"),
    "another word for the sweep": ("sweep:", "sweeps:", 1, "unknown key 'sweeps' at the top"),
    "a sweep that is a word": (GOOD, "sweep: aspect\n", 1, "sweep holds no keys"),
    "an empty file": (GOOD, "", 1, "the file holds no keys"),
    "a cluster without a sweep": (GOOD, "cluster_name: a\n", 1, "no sweep in this cluster configuration"),
    "metadata without a sweep": (GOOD, "cluster_name: a\nmetadata:\n  swep: {}\n", 2, "no sweep in this cluster"),
    "weights that have changed": ("sweep:", "weights: {MODEL: abc}\nsweep:", 1, "was made with the weights abc"),
    "an E_T that is a number": ("sweep:", "train_entropy:\n  m: 3\nsweep:", 2, "train_entropy.m is 3: give layer"),
    "an E_T in a file": ("sweep:", "train_entropy:\n  m: a.json\nsweep:", 2, "train_entropy.m is 'a.json': give layer"),
    "an E_T that is a word": ("sweep:", "train_entropy:\n  m: {a: b}\nsweep:", 2, "train_entropy of layer 'a' is 'b'"),
    "weights that are a word": ("sweep:", "weights: abc\nsweep:", 1, "weights is no table of model: hash"),
}


@pytest.fixture
def place(tmp_path, tiny_folder, tiny_clip_folder, monkeypatch):
    """A folder with a sweep's file to be, and the files that it might name."""
    folder = tmp_path / "specs"
    folder.mkdir()
    (tmp_path / "captions.txt").write_text("a red circle\n")
    pq.write_table(pa.table({"caption": ["a red circle", "a blue square"], "n": [1, 2]}), folder / "c.parquet")
    (folder / "nothing").mkdir()
    (tmp_path / "c.parquet").write_bytes((folder / "c.parquet").read_bytes())
    (tmp_path / "parquet.pth").write_bytes((folder / "c.parquet").read_bytes())
    shutil.copytree(tiny_clip_folder, tmp_path / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "empty.txt").write_text("\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "link.txt").symlink_to(tmp_path / "captions.txt")
    (folder / ".secret").write_text("a red circle\n")
    (folder / "captions.txt").write_text("a red circle\n")
    monkeypatch.chdir(tmp_path)

    def write(old="", new=""):
        assert old in GOOD
        text = GOOD.replace(old, new, 1).replace("MODEL", str(tiny_folder)).replace("TINY_CLIP", str(tiny_clip_folder))
        (folder / "s.yaml").write_text(text)
        return folder / "s.yaml"

    return write


@pytest.fixture
def entscale(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["entscale", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), capsys.readouterr()

    return run


def files(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


@pytest.mark.parametrize(("old", "new", "line", "said"), BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["drawn", "dry"])
def test_it_is_refused_in_one_line(place, entscale, tmp_path, old, new, line, said, options):
    path = place(old, new)
    before = files(tmp_path)
    code, captured = entscale("sweep", path, "--out", tmp_path / "run", *options)
    assert code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith(f"entscale: {path}:{line}: "), captured.err
    assert " ".join(said.split()) in captured.err
    assert files(tmp_path) == before


def test_there_are_forty_kinds_and_more():
    assert len(BAD) >= 40
    assert len({(old, new) for old, new, _, _ in BAD.values()}) == len(BAD)


@pytest.mark.parametrize(
    ("old", "new"), [("", ""), (PROMPTS, "captions.txt"), (PROMPTS, "{parquet: c.parquet, count: 2}")]
)
def test_what_is_right_is_planned(place, entscale, tmp_path, old, new):
    code, captured = entscale("sweep", place(old, new), "--out", tmp_path / "run", "--dry-run")
    assert code == 0, captured.err
    assert "cells" in captured.out


def test_a_file_that_is_missing(entscale, tmp_path):
    code, captured = entscale("sweep", tmp_path / "nowhere.yaml", "--out", tmp_path / "run")
    assert code == 2
    assert captured.err == f"entscale: {tmp_path / 'nowhere.yaml'} can't be read: No such file or directory\n"


@pytest.mark.parametrize("command", ["submit", "sweep"])
def test_every_way_in_refuses_alike(place, entscale, tmp_path, command):
    for old, new, said in (
        ("steps: 2", "steps: 0", "8: sampler.steps is 0"),
        (
            "[objects]",
            "[fid]\n  extractors: {inception: no.pth}",
            "11: extractors.inception: Inception weights 'no.pth'",
        ),
    ):
        path = place(old, new)
        before = files(tmp_path)
        code, captured = entscale(command, path, "--out", "~/run")
        assert code == 2
        assert f"{path}:{said}" in captured.err
        assert files(tmp_path) == before
