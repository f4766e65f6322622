"""Configuration: overrides, errors that name the key and its neighbours, the hash that names a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("yaml")

import yaml

from octavo.config import (
    ConfigError,
    DCNv2Config,
    DeepFMConfig,
    DINConfig,
    DLRMConfig,
    MMoEConfig,
    ModelConfig,
    RunConfig,
    SharedBottomConfig,
    WukongConfig,
    build_config,
    config_hash,
    load_config,
    run_id,
    save_config,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_file_values_and_overrides_win_in_that_order(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.yaml", "name: a\ntraining: {batch_size: 64, optimizer: {lr: 1e-3}}\nmodel: {norm: block}\n"
    )
    config = load_config(path, ["training.batch_size=128", "training.batch_size=256", "model.norm=null"])
    assert config.training.batch_size == 256
    assert config.training.optimizer.lr == 0.001
    assert config.model.norm is None
    assert config.training.holdout == 0.2
    nested = load_config(path, ["model.top=[8, 4]", "training.optimizer.kind=adagrad", "training.clip_norm=1.5"])
    assert nested.model.top == [8, 4]
    assert nested.training.optimizer.kind == "adagrad"
    assert nested.training.clip_norm == 1.5


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "a.yaml", "")) == RunConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {batchsize: 3}", ["unknown key 'training.batchsize'", "did you mean training.batch_size?"]),
        ("trainning: {batch_size: 3}", ["unknown key 'trainning'", "did you mean training?", "name, data, model"]),
        ("model: {lr: 3}", ["unknown key 'model.lr'", "model.table_optimizer.lr", "training.optimizer.lr"]),
        ("model: {table_optimizer: {rl: 1}}", ["unknown key 'model.table_optimizer.rl'", "model.table_optimizer.lr"]),
        ("training: {batch_size: 0}", ["training.batch_size", "greater than 0", "found 0"]),
        ("training: {batch_size: many}", ["training.batch_size", "found 'many'"]),
        ("training: {holdout: 1.0}", ["training.holdout", "less than 1", "found 1.0"]),
        ("training: {clip_norm: .nan}", ["training.clip_norm", "found nan"]),
        ("model: {norm: batch}", ["model.norm", "'layer', 'rms', 'block' or 'swish_rms'", "found 'batch'"]),
        ("model: {kind: wukon}", ["model: unknown kind 'wukon'; expected one of dlrm, dcnv2, deepfm, din, wukong"]),
        ("model: 3", ["model: ", "found 3"]),
        (
            "model: {kind: wukong, cross_layers: 3}",
            ["unknown key 'model.cross_layers'", "did you mean model.layers?", "known in model: kind, ", "fmb_tokens"],
        ),
        ("model: {kind: wukong, bottm: [3]}", ["unknown key 'model.bottm'", "did you mean model.bottom"]),
        (
            "model: {kind: dcnv2, heads: {kind: mmoe, exprts: 3}}",
            ["unknown key 'model.heads.exprts'", "model.heads.experts", "known in model.heads: kind, experts, expert"],
        ),
        ("model: {heads: {kind: ple}}", ["model.heads: unknown kind 'ple'; expected one of shared_bottom, mmoe"]),
        ("model: {heads: {kind: mmoe, expert: []}}", ["model.heads.expert", "at least 1 item", "found []"]),
        (
            "model: {heads: {experts: 3}}",
            ["unknown key 'model.heads.experts'", "known in model.heads: kind, tower, windows)"],
        ),
        ("model: {kind: dcnv2, rank: 0}", ["model.rank", "greater than 0", "found 0"]),
        ("model: {kind: dcnv2, structure: deep}", ["model.structure", "'stacked' or 'parallel'", "found 'deep'"]),
        ("training: {fmb_tokens: 3}", ["unknown key 'training.fmb_tokens' (known in training"]),
        ("model: {kind: wukong}\ntraining: {fmb_tokens: 3}", ["did you mean model.fmb_tokens?"]),
        ("model: {norm: swish_rms}", ["model: norm=swish_rms is its own activation; set activation=null"]),
        ("model: {table_optimizer: {betas: [0.9, 0.99]}}", ["betas means nothing for kind=row_wise_adagrad; remove"]),
        ("model: {table_optimizer: {kind: adam, betas: [0.9, 1]}}", ["betas: expected two numbers in [0, 1)", "1.0]"]),
        ("model: {table_optimizer: {lazy: false}}", ["lazy=false means nothing for kind=row_wise_adagrad; remove it"]),
        ("model: {table_optimizer: {kind: sgd, eps: 0.1}}", ["eps means nothing for kind=sgd; remove it"]),
        ("data: {source: log}", ["data", "source=log needs path"]),
        ("data: {source: movielens, events: 5}", ["events means nothing for source=movielens; use limit"]),
        ("training: {seed: 1, seed: 2}", ["key 'seed' appears twice", "line 1"]),
        ("training: 3", ["training", "found 3"]),
        ("- a\n- b", ["expected sections", "found ['a', 'b']"]),
        ("a: [", ["not valid YAML"]),
    ],
)
def test_bad_files_get_one_line_that_names_key_and_file(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = write(tmp_path / "bad.yaml", text)
    found = message(path)
    assert found.startswith(f"{path}: ")
    for part in expected:
        assert part in found


def test_a_model_is_of_the_kind_it_names() -> None:
    assert build_config({"model": {"top": [8]}}).model == DLRMConfig(top=[8])
    found = build_config({}, ["model.kind=wukong", "model.rank=null", "model.heads.kind=mmoe", "model.heads.experts=2"])
    assert found.model == WukongConfig(rank=None, heads=MMoEConfig(experts=2))
    assert build_config({"model": {"heads": {"tower": [4]}}}).model.heads == SharedBottomConfig(tower=[4])
    assert build_config(found.resolved()) == found
    for kind in ("dlrm", "dcnv2", "deepfm", "din", "wukong"):
        assert build_config({"model": {"kind": kind}}).resolved()["model"]["kind"] == kind


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_the_examples_are_valid(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_the_documents_name_every_key_of_a_model() -> None:
    root = Path(__file__).parents[2]
    snippet = (root / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    assert build_config(yaml.safe_load(snippet)).model.kind == "wukong"
    page = (root / "docs" / "models.md").read_text(encoding="utf-8")
    for kind in (DLRMConfig, DCNv2Config, DeepFMConfig, DINConfig, WukongConfig):
        for name, field in kind.model_fields.items():
            assert f"`{name}`" in page or f"`{name}: " in page, name
            if name not in ModelConfig.model_fields:
                default = json.dumps(field.get_default(call_default_factory=True)).strip('"')
                assert f"`{name}: {default}`" in page, f"{kind.__name__}.{name}"
    for heads in (SharedBottomConfig, MMoEConfig):
        line = ", ".join(f"{key}: {value}" for key, value in heads().model_dump().items())
        assert f"{{{line}}}" in page


def test_bad_overrides_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "")
    assert message(path, "training.batchsize=3").startswith("override 'training.batchsize=3': unknown key")
    assert "did you mean training.batch_size" in message(path, "training.batchsize=3")
    assert "expected section.key=value" in message(path, "training.batch_size")
    assert "expected section.key=value" in message(path, "training..seed=1")
    assert "holds a value, not keys" in message(write(tmp_path / "b.yaml", "name: x"), "name.first=3")
    assert "not valid YAML" in message(path, "model.top=[1")
    assert "cannot read" in message(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    assert "cannot read" in message(tmp_path / "latin.yaml")


def test_hash_is_of_canonical_json_and_names_the_run() -> None:
    config = build_config({"name": "trial", "model": {"top": [8]}})
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    assert config_hash(config) == hashlib.sha256(canonical.encode()).hexdigest()
    assert run_id(config) == f"trial-{config_hash(config)[:12]}"
    same = build_config({"model": {"top": [8]}, "name": "trial"})
    other = build_config({"name": "trial", "model": {"top": [9]}})
    assert run_id(same) == run_id(config) != run_id(other)


def test_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = build_config(
        {"name": "x"}, ["model.norm=null", "training.optimizer.lr=0.0123456789012345", "plan.rounds=3"]
    )
    save_config(config, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_an_override_of_the_kind_leaves_out_what_the_new_kind_has_not() -> None:
    values = {"model": {"embedding_dim": 8, "top": [4], "heads": {"kind": "mmoe", "experts": 3, "tower": [2]}}}
    found = build_config(values, ["model.kind=dcnv2", "model.heads.kind=shared_bottom"]).model
    assert (found.kind, found.embedding_dim, found.heads.kind, found.heads.tower) == ("dcnv2", 8, "shared_bottom", [2])
    assert "top" in values["model"]  # what was given stays as it was
    with pytest.raises(ConfigError, match=r"override 'model.top=\[3\]': unknown key 'model.top'"):
        build_config(values, ["model.top=[3]", "model.kind=dcnv2"])
    with pytest.raises(ConfigError, match="data.kind"):
        build_config(values, ["data.kind=3"])
    with pytest.raises(ConfigError, match="unknown kind 'nope'"):
        build_config(values, ["model.kind=nope"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "world"}, "source=world needs preset"),
        ({"source": "world", "preset": "drift"}, "source=world needs one of events and days"),
        ({"source": "world", "preset": "drift", "events": 5, "days": 1}, "source=world needs one of events and days"),
        ({"source": "world", "preset": "drift", "events": 5, "path": "x"}, "path means nothing for source=world"),
        ({"source": "demo", "preset": "drift"}, "preset and days mean nothing for source=demo"),
        ({"source": "log", "path": "x", "days": 2}, "preset and days mean nothing for source=log"),
        ({"source": "movielens", "events": 5}, "events means nothing for source=movielens; use limit"),
    ],
)
def test_data_keys_fit_their_source(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_config({"data": values})
