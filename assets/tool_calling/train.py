"""Train the LoRA adapter that teaches the rehearsal's model to call tools.

    python train.py MODEL_FOLDER OUT --minutes 95

``MODEL_FOLDER`` holds the model as transformers reads it (tests/vllm_env.sh makes one from the
rehearsal's GGUF file). The adapter goes to ``OUT`` whenever its score is taken; ``log.csv`` beside
it has a row for each time. SIGTERM ends the training as the last minute would.
"""

import argparse
import csv
import math
import random
import signal
import time
from pathlib import Path

import torch
from data import HELD_OUT, TRAINED, Sheet, sheet
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPLATE = Path(__file__).with_name("hermes.jinja").read_text()
RANK, ALPHA = 16, 32
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EVERY_S = 600  # a score each ten minutes


class Row:
    """One sheet as one sequence: its tools once, and then each conversation, which sees the tools
    and itself only and whose positions go on from the tools. So a sheet of eight conversations
    costs little more than two conversations alone, and gives what eight would."""

    def __init__(self, tokenizer, made: Sheet) -> None:
        render = tokenizer.apply_chat_template
        opening = [m for m in made.conversations[0][:1] if m["role"] == "system"]
        shared = {"tools": made.tools, "chat_template": TEMPLATE, "tokenize": False}
        system = render([*opening, _NOBODY], **shared)
        system = system[: system.index("<|im_start|>user")]
        self.tokens = tokenizer(system)["input_ids"]
        prefix = len(self.tokens)
        self.positions, self.group = list(range(prefix)), [0] * prefix
        self.labels = [-100] * prefix
        self.spans = []  # of each conversation's first answer: (from, to of the name, to)
        for number, messages in enumerate(made.conversations, 1):
            text = render(messages, **shared)
            pieces = text[len(system) :].split("<|im_start|>assistant\n")
            first = None
            for i, piece in enumerate(pieces):
                answer, rest = ("", piece) if i == 0 else piece.split("<|im_end|>\n", 1)
                if i:
                    # Token borders as at serving: the prompt ends before the answer begins.
                    tokens = tokenizer(answer + "<|im_end|>")["input_ids"]
                    first = first or (len(self.tokens), tokens, answer)
                    self._add(tokens, tokens, number, prefix)
                    rest = "\n" + rest
                if i + 1 < len(pieces):
                    rest += "<|im_start|>assistant\n"
                if i + 1 < len(pieces) or not i:
                    tokens = tokenizer(rest)["input_ids"]
                    self._add(tokens, [-100] * len(tokens), number, prefix)
            start, tokens, answer = first
            name = answer.find('"arguments"')
            named = len(tokenizer(answer[:name])["input_ids"]) if name > 0 else 3
            self.spans.append((start, start + named, start + len(tokens)))

    def _add(self, tokens: list[int], labels: list[int], group: int, prefix: int) -> None:
        after = self.positions[-1] + 1 if self.group[-1] == group else prefix
        self.positions += range(after, after + len(tokens))
        self.group += [group] * len(tokens)
        self.tokens += tokens
        self.labels += labels

    def predicted(self, model) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, vocabulary) and labels (n,) where there is something to learn."""
        group = torch.tensor(self.group)
        seen = (group[:, None] == group) | (group == 0)
        seen &= torch.ones(len(group), len(group), dtype=torch.bool).tril()
        base = model.get_base_model()
        hidden = base.model(
            input_ids=torch.tensor([self.tokens]),
            position_ids=torch.tensor([self.positions]),
            attention_mask=torch.zeros(1, 1, *seen.shape)
            .masked_fill(~seen, -math.inf)
            .to(base.dtype),
        ).last_hidden_state[0]
        labels = torch.tensor(self.labels[1:])
        learnt = labels != -100
        return base.lm_head(hidden[:-1][learnt]).float(), labels[learnt]


_NOBODY = {"role": "user", "content": ""}


def score(model, tokenizer, families: list[dict], sheets: int) -> dict[str, float]:
    """Shares of first answers that greedy decoding would give exactly, on sheets of ``families``.

    Greedy decoding repeats an answer exactly when each of its tokens is the likeliest after the
    ones before it, so one pass over the given answers tells.
    """
    rng, right, asked = random.Random(5), {}, {}
    for _ in range(sheets):
        made = sheet(rng, families)
        row = Row(tokenizer, made)
        with torch.no_grad():
            logits, labels = row.predicted(model)
        hits = iter((logits.argmax(-1) == labels).tolist())
        hit = [next(hits) if label != -100 else True for label in [*row.labels[1:], -100]]
        for kind, (start, named, end) in zip(made.kinds, row.spans, strict=True):
            asked[kind] = asked.get(kind, 0) + 1
            # Without a call any words will do, as long as no call begins.
            part = hit[start - 1 : (end if kind != "none" else start) - 1]
            if kind == "none":
                part = [
                    row.labels[start] != tokenizer.convert_tokens_to_ids("<") and hit[start - 1]
                ]
            right[kind] = right.get(kind, 0) + all(part)
            if kind == "call":
                right["name"] = right.get("name", 0) + all(hit[start - 1 : named - 1])
    asked["name"] = asked.get("call", 0)
    return {
        kind: right.get(kind, 0) / asked[kind]
        for kind in ("name", "call", "two", "none")
        if asked.get(kind)
    }


def main() -> None:
    """Train by the clock, with a score and a saved adapter every ten minutes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=95, help="of training, wall clock")
    parser.add_argument("--rate", type=float, default=6e-4, help="highest learning rate")
    parser.add_argument("--sheets", type=int, default=1, help="in one step")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS)
    model = get_peft_model(model, settings)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=options.rate, weight_decay=0.0, betas=(0.9, 0.99))
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    options.out.mkdir(parents=True, exist_ok=True)
    rng, step, losses, tokens = random.Random(7), 0, [], 0
    began = scored = time.monotonic()
    whole = options.minutes * 60
    while True:
        spent = time.monotonic() - began
        last = spent >= whole or bool(stop)
        if last or time.monotonic() - scored > EVERY_S:
            scored = time.monotonic()
            _log(options.out, model, tokenizer, spent, step, options.sheets, tokens, losses)
            losses = []
        if last:
            break
        # By the clock, so that the rate has come down when the time is up, on any machine.
        share = spent / whole
        rate = (
            options.rate
            * min(1, (step + 1) / 20)
            * (0.03 + 0.97 * (1 + math.cos(math.pi * share)) / 2)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        for _ in range(options.sheets):
            row = Row(tokenizer, sheet(rng, TRAINED))
            logits, labels = row.predicted(model)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            (loss / options.sheets).backward()
            losses.append(loss.item())
            tokens += len(row.tokens)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 10 == 0:
            recent = sum(losses[-20:]) / len(losses[-20:])
            speed = tokens / spent if spent else 0
            print(
                f"{spent:.0f} s, step {step}, loss {recent:.3f}, {speed:.0f} tokens/s", flush=True
            )


def _log(out, model, tokenizer, spent, step, sheets, tokens, losses) -> None:
    model.save_pretrained(out)
    row = {
        "minutes": round(spent / 60, 1),
        "step": step,
        "conversations": step * sheets * 8,
        "tokens": tokens,
        "loss": round(sum(losses) / max(len(losses), 1), 4),
    }
    for label, families in (("known", TRAINED), ("unknown", HELD_OUT)):
        row |= {
            f"{label} tools, {k}": round(v, 3)
            for k, v in score(model, tokenizer, families, 12).items()
        }
    log = out / "log.csv"
    fresh = not log.exists()
    with log.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


if __name__ == "__main__":
    main()
