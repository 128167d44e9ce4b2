"""docs/lab-notes/published-options.md names flags and tests that exist, and leaves no published attack position out."""

from __future__ import annotations

import argparse
import pathlib
import re

from advunlearn.cli.main import build_parser
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.base import choices

# What the published code offers: flags of its training script with their choices, and settings of its test attack.
PUBLISHED = {
    "--prompt": "allartist i2p artifact",
    "--seperator": "",
    "--dataset_retain": "coco_object imagenet243 coco_object_no_filter imagenet243_no_filter",
    "--retain_batch": "",
    "--retain_train": "reg iter",
    "--retain_step": "",
    "--retain_loss_w": "",
    "--train_method": "text_encoder_full text_encoder_layer0 text_encoder_layer0_11 full xattn noxattn selfattn notime "
    "xlayer selflayer",
    "--norm_layer": "",
    "--component": "all ffn attn",
    "--iterations": "",
    "--lr": "",
    "--warmup_iter": "",
    "--start_guidance": "",
    "--negative_guidance": "",
    "--ddim_steps": "",
    "--image_size": "",
    "--config_path": "",
    "--ckpt_path": "",
    "--diffusers_config_path": "",
    "--devices": "",
    "--save_interval": "",
    "--project_name": "",
    "--attack_method": "pgd multi_pgd fast_at free_at",
    "--attack_step": "",
    "--attack_lr": "",
    "--adv_prompt_num": "",
    "--adv_prompt_update_step": "",
    "--attack_init": "random latest",
    "--attack_type": "replace_k add prefix_k suffix_k mid_k insert_k per_k_words",
    "--attack_embd_type": "word_embd condition_embd",
    "overall": "attacker task seed resume logger",
    "overall.attacker": "text_grad no_attack random seed_search hard_prompt hard_prompt_multi gcg",
    "overall.task": "P4D transfer classifier sd_guidence",
    "task": "concept classifier_dir dataset_path model_name_or_path target_ckpt criterion sampling_step_num sld "
    "sld_concept negative_prompt cache_path",
    "attacker.gcg.candidate_size": "search_size",
    "attacker.hard_prompt.lr": "weight_decay num_data",
    "attacker.hard_prompt_multi.lr": "batch_size noise_sd",
    "attacker.no_attack.dataset_path": "",
    "attacker": "eval_seed insertion_location k iteration text_grad seed_iteration universal sequential attack_idx",
}
ROOT = pathlib.Path(__file__).parents[2]


def test_every_flag_and_every_test_in_the_table_exists() -> None:
    page = (ROOT / "docs" / "lab-notes" / "published-options.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] != "published"]
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices.values()
    flags = {flag for command in commands for action in command._actions for flag in action.option_strings}
    assert len(rows) > 60 and len(flags) > 60
    for row in rows:
        assert len(row) == 3 and re.search(r"`test_\w+`|`tests/|left out", row[2]), row
        assert set(re.findall(r"--[a-z][\w-]*", " ".join(row[1:]))) <= flags, row
        assert all(f"def {name}(" in tests for name in re.findall(r"`(test_\w+)`", row[2])), row
        assert all((ROOT / path).is_file() for path in re.findall(r"`(tests/[^`]+)`", row[2])), row
    published = set(re.findall(r"[\w.-]+", " ".join(row[0] for row in rows)))
    words = {word for flag in published for word in (flag, *flag.split("."))}
    for flag, values in PUBLISHED.items():
        assert {flag, *values.split()} <= words, flag
    ours = " ".join(row[1] for row in rows)
    assert all(re.search(rf"[` ]{position}`", ours) for position in choices(AdversaryConfig, "position"))
