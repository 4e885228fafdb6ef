"""Train the LoRA adapter that teaches the rehearsal's model to call tools.

    torchrun --nproc-per-node 2 train.py MODEL_FOLDER OUT --minutes 95

``MODEL_FOLDER`` holds the model as transformers reads it (tests/vllm_env.sh makes one from the
rehearsal's GGUF file). The adapter goes to ``OUT`` whenever its score is taken; ``log.csv`` beside
it has a row for each time. Each process, a core for each, trains on sheets of its own; a step
takes the mean of their gradients. Plain ``python`` trains with one.
"""

import argparse
import csv
import math
import os
import random
import time
from pathlib import Path

import torch
from data import HELD_OUT, TRAINED, Sheet, sheet
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.nn.functional import pad
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

TEMPLATE = Path(__file__).with_name("hermes.jinja").read_text()
RANK, ALPHA = 16, 32
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EVERY_S = 1200  # a score each twenty minutes


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
        base = model.get_base_model()
        hidden = base.model(
            input_ids=torch.tensor([self.tokens]),
            position_ids=torch.tensor([self.positions]),
            use_cache=False,
            layout=self._layout(),
        ).last_hidden_state[0]
        labels = torch.tensor(self.labels[1:])
        learnt = labels != -100
        return base.lm_head(hidden[:-1][learnt]).float(), labels[learnt]

    def _layout(self) -> tuple[int, list[int], torch.Tensor]:
        """The prefix's length, each conversation's, and what a conversation may see, as a mask
        (longest, prefix + longest) on its scores: all of the prefix, and itself so far."""
        prefix, *lengths = torch.tensor(self.group).bincount().tolist()
        longest = max(lengths)
        itself = torch.ones(longest, longest).tril()
        seen = torch.cat([torch.ones(longest, prefix), itself], 1)
        return prefix, lengths, (1 - seen) * -1e9


def attend(module, query, key, value, _, scaling: float, layout: tuple, **__):
    """Attention of a sheet: the prefix within itself, then each conversation with the prefix and
    itself. A mask over the whole sheet would take four times as long."""
    prefix, lengths, mask = layout
    key, value = (t[0].repeat_interleave(module.num_key_value_groups, 0) for t in (key, value))
    query = query[0] * scaling  # (heads, tokens, size)

    def mixed(query, key, value, mask):
        scores = query @ key.transpose(-1, -2) + mask.to(query.dtype)
        return torch.softmax(scores, -1) @ value

    def padded(t):  # (heads, conversations, longest, size)
        rows = t[:, prefix:].split(lengths, 1)
        longest = mask.shape[0]
        return torch.stack([pad(r, (0, 0, 0, longest - r.shape[1])) for r in rows], 1)

    def with_prefix(t):
        shared = t[:, None, :prefix].expand(-1, len(lengths), -1, -1)
        return torch.cat([shared, padded(t)], 2)

    own = torch.full((prefix, prefix), -1e9).triu(1)
    first = mixed(query[:, :prefix], key[:, :prefix], value[:, :prefix], own)
    rest = mixed(padded(query), with_prefix(key), with_prefix(value), mask)
    rows = [row[:, :length] for row, length in zip(rest.unbind(1), lengths, strict=True)]
    return torch.cat([first, *rows], 1).transpose(0, 1)[None], None


_NOBODY = {"role": "user", "content": ""}


def score(model, tokenizer, families: list[dict], sheets: int) -> dict[str, float]:
    """Shares of first answers that greedy decoding would give exactly, on sheets of ``families``.

    Greedy decoding repeats an answer exactly when each of its tokens is the likeliest after the
    ones before it, so one pass over the given answers tells.
    """
    rng, right, asked = random.Random(5), {}, {}
    for _ in range(sheets):
        made = sheet(rng, families, composed=0)
        row = Row(tokenizer, made)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
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


def main() -> None:  # noqa: C901, PLR0915  one training loop, read from top to bottom
    """Train by the clock, with a score and a saved adapter every ten minutes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=95, help="of training, wall clock")
    parser.add_argument("--rate", type=float, default=8e-4, help="highest learning rate")
    parser.add_argument("--conversations", type=int, default=12, help="of one sheet, in one step")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        distributed.init_process_group("gloo")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    AttentionInterface.register("sheet", attend)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.bfloat16, attn_implementation="sheet"
    )
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS))
    for part in model.modules():  # the adapter's weights are float32; its products need not be
        part.cast_input_dtype_enabled = False
    weights = [p for p in model.parameters() if p.requires_grad]
    numbers = [p.numel() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=options.rate, weight_decay=0.0, betas=(0.9, 0.99))
    options.out.mkdir(parents=True, exist_ok=True)
    rng, step, losses, tokens, conversations = random.Random(7 + rank), 0, [], 0, 0
    sizes = random.Random(6)  # the same in all processes, so that none waits long for another
    began, scored = time.monotonic(), 0.0
    whole = options.minutes * 60
    while True:
        now = torch.tensor(time.monotonic() - began)
        if processes > 1:
            distributed.broadcast(now, 0)  # one clock for all
        spent = now.item()
        last = spent >= whole
        if last or spent - scored > EVERY_S:
            scored = spent
            if rank == 0:
                counts = {"step": step, "conversations": conversations, "tokens": tokens}
                _log(options.out, model, tokenizer, spent, counts, losses)
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
        row = Row(tokenizer, sheet(rng, TRAINED, options.conversations, sizes=sizes))
        with torch.autocast("cpu", torch.bfloat16):
            logits, labels = row.predicted(model)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        if processes > 1:
            gradient = torch.cat([p.grad.flatten() for p in weights])
            distributed.all_reduce(gradient)
            for p, mean in zip(weights, (gradient / processes).split(numbers), strict=True):
                p.grad.copy_(mean.view_as(p))
        losses.append(loss.item())
        tokens += len(row.tokens) * processes
        conversations += options.conversations * processes
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 10 == 0 and rank == 0:
            recent = sum(losses[-20:]) / len(losses[-20:])
            speed = tokens / spent if spent else 0
            print(
                f"{spent:.0f} s, step {step}, loss {recent:.3f}, {speed:.0f} tokens/s", flush=True
            )


def _log(out, model, tokenizer, spent, counts, losses) -> None:
    model.save_pretrained(out)
    row = {
        "minutes": round(spent / 60, 1),
        **counts,
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
