"""Tokens per second of ``AutoregressiveDecoder`` against ``transformers.generate``, in one process.

    python benchmarks/decode_vs_generate.py
    python benchmarks/decode_vs_generate.py --random 12x128
    python benchmarks/decode_vs_generate.py --random 12x128 --random-type gpt2 --batch 4

Both decode the same prompts greedily with stopping switched off, in turns, the order reversed in every second pair, so
that a loaded machine hits both alike. The ratio of each pair is printed, and the medians. The answers must be equal.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lit_hass.decoding import AutoregressiveDecoder
from lit_hass.decoding.clock import device_seconds
from lit_hass.models import load_base


def random_model(shape: str, kind: str) -> PreTrainedModel:
    """Build a random model of LAYERSxWIDTH with heads of 32 and the shipped model's proportions (vocabulary 1024)."""
    layers, width = (int(part) for part in shape.lower().split("x"))
    torch.manual_seed(0)
    heads = max(1, width // 32)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=1024, n_embd=width, n_layer=layers, n_head=heads, initializer_range=0.1)
        return GPT2LMHeadModel(config).eval()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=width * 5 // 2,
            initializer_range=0.1,
        )
    ).eval()


def timed(answer: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Seconds of one call, and what it returned."""
    start = device_seconds(device)
    tokens = answer()
    return device_seconds(device) - start, tokens


def main() -> None:
    """Parse the command line, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="html_to_tsv", help="shipped name, folder or hub id")
    parser.add_argument("--random", metavar="LAYERSxWIDTH", help="a random model instead, such as 12x128")
    parser.add_argument("--random-type", choices=("llama", "gpt2"), default="llama")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=60)
    parser.add_argument("--max-new-tokens", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.random:
        model = random_model(args.random, args.random_type).to(args.device)
        if args.dtype != "auto":
            model.to(getattr(torch, args.dtype))
    else:
        model = load_base(args.model, dtype=args.dtype, device=args.device)
    decoder = AutoregressiveDecoder(model)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, decoder.forward.vocab_size, (args.batch, args.prompt_tokens), generator=generator)
    inputs = prompts.to(model.device)

    def ours() -> Tensor:
        return torch.stack([g.output_ids for g in decoder.generate(list(prompts), args.max_new_tokens)])

    def theirs() -> Tensor:
        tokens = model.generate(  # type: ignore[operator]
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=args.max_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            repetition_penalty=1.0,
        )
        return tokens[:, args.prompt_tokens :].cpu()

    equal = (ours() == theirs()).float().mean().item()  # the warm-up of both
    count = args.batch * args.max_new_tokens
    print(
        f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {model.dtype}, "
        f"{model.device}, {torch.get_num_threads()} thread(s), batch {args.batch}, {args.prompt_tokens} + "
        f"{args.max_new_tokens} tokens, {type(decoder.forward).__name__}; equal tokens: {equal:.1%}"
    )
    print("pair   decoder tok/s   generate tok/s   ratio")
    ratios, speeds = [], ([], [])  # type: ignore[var-annotated]
    for pair in range(args.repeats):
        order = (ours, theirs) if pair % 2 == 0 else (theirs, ours)
        seconds = {answer: timed(answer, model.device)[0] for answer in order}
        ratios.append(seconds[theirs] / seconds[ours])
        speeds[0].append(count / seconds[ours])
        speeds[1].append(count / seconds[theirs])
        print(f"{pair + 1:4d}   {speeds[0][-1]:13.1f}   {speeds[1][-1]:14.1f}   {ratios[-1]:5.2f}")
    medians = [statistics.median(values) for values in (*speeds, ratios)]
    print(f"median {medians[0]:13.1f}   {medians[1]:14.1f}   {medians[2]:5.2f}   (min {min(ratios):.2f})")


if __name__ == "__main__":
    main()
