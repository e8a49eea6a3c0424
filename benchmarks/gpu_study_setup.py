"""What ``benchmarks/gpu_study.py`` prepares before the first run: the LLM's folder, and the config of each run."""

from pathlib import Path

from gpu_list import ROOT
from gpu_study_schedule import Job
from mmengine.config import Config

from asvr.base import hub
from asvr.base.gguf import is_gguf
from asvr.data.text_tokenizer import ByteLevelBPE, HFTokenizer, save_text_tokenizer
from asvr.models.llms import HFCausalLM
from asvr.recipe.config import dump_config
from asvr.studies.results import runs
from asvr.studies.study_file import arm_config

SPECIAL = ("<|im_start|>", "<|im_end|>")  # of the template chatml
SCENES = dict(scenes=24, concepts=20, size=64)
# For `--device cpu`: the same in seconds.
TINY = dict(
    model=dict(encoder=dict(image_size=64)),
    data=dict(train=SCENES, max_length=640, micro_batch=4, global_batch=4, num_workers=0),
    optim=dict(precision="float32"),
    schedule=dict(steps=3),
    stages=dict(pretrain=dict(schedule=dict(steps=2))),
    evaluation=dict(dataset=dict(SCENES, scenes=4), batch_size=32, max_new_tokens=2),
    runtime=dict(log_interval=1),
)
TINY_TARGET = dict(tokenizer=dict(codebook_size=8), fit=dict(vectors_per_code=8, iterations=2), head=dict(width=16))


def llm_of(study: Config, given: Path | None, work: Path, device: str) -> str:
    """The folder of the LLM that every run starts from.

    given: ``--llm``. A GGUF file, as the study's config names it, is read once here: each run would take half a minute
    for it. On the CPU a tiny LLM with random weights stands in for it."""
    own = arm_config(study, study.baseline, study.seeds[0], work).model.llm.name
    name = str(given.resolve()) if given is not None else own
    if given is None and device == "cpu":
        return str(write_tiny_llm(work / "llm"))
    if not is_gguf(hub.require(name, what="LLM")):
        return name
    folder = work / "llm"
    save_text_tokenizer(HFTokenizer(name=name), folder)
    HFCausalLM(name=name).model.save_pretrained(folder)
    return str(folder)


def write_tiny_llm(folder: Path) -> Path:
    """A Llama of SmolLM2's kind with random weights, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    corpus = dict(type="Scenes", scenes=50, captions=True)
    tokenizer = ByteLevelBPE(vocab_size=400, corpus=corpus, special_tokens=SPECIAL)
    save_text_tokenizer(tokenizer, folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=36, intermediate_size=64, num_hidden_layers=2, max_position_embeddings=1024)
    heads = dict(num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True)
    ids = dict(bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    config = AutoConfig.for_model("llama", vocab_size=tokenizer.num_ids, **sizes, **heads, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def jobs_of(study: Config, work: Path, *, llm: str, device: str) -> list[Job]:
    """The runs in order. Each has a config of its own; features and codes of all are in one folder."""
    found, folder = [], work / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs(study, work):
        cfg = arm_config(study, run.arm, run.seed, work)
        if device == "cpu":
            cfg.merge_from_dict(TINY)
            targets = {str(i): TINY_TARGET for i in range(len(cfg.model.reconstruction))}
            cfg.merge_from_dict(dict(model=dict(reconstruction=targets)) if targets else {})
        own = dict(model=dict(llm=dict(name=llm)), text_tokenizer=dict(name=llm), runtime=dict(device=device))
        cfg.merge_from_dict(own)
        file = folder / f"{run.arm}_{run.seed}.py"
        dump_config(cfg, file)
        command = [str(ROOT / "tools/train.py"), str(file), "--work-dir", str(run.work_dir)]
        found.append(Job(run, command, run.work_dir / "console.log"))
    return found
