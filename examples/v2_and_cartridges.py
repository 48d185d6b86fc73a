"""LLaMA-Adapter V2 and a cartridge in three lines each, and what they cost.

    python examples/v2_and_cartridges.py --steps 30

V2 trains a bias and a scale of every linear layer, and the norms, beside the prompts. A cartridge
trains the keys and values that a document leaves in the model. One model holds both. The cartridge
can become no better than the model that reads the document: the course's Llama reads badly.
"""

import argparse
from collections.abc import Sequence

from llama_adapter_edu import (
    AdaptionPromptConfig,
    CartridgeConfig,
    TrainingConfig,
    add_adaption_prompts,
    add_cartridge,
    encode_dataset,
    finetune,
    generate_answers,
    load_llama,
    parameter_report,
    use_adapter,
)

DOCUMENT = "The library is on the second floor. The cellar holds the bicycles. Ada keeps the keys."
FACTS = {
    "Which floor is the library on?": "The second.",
    "Where are the bicycles?": "In the cellar.",
    "Who keeps the keys?": "Ada.",
}


def main(arguments: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Returns what V2, the cartridge and the base model answer to the three questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a hub id or a folder; default: the course's Llama")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args(arguments)

    model, tokenizer = load_llama(options.model)
    questions = [{"instruction": q, "input": "", "output": a} for q, a in FACTS.items()]
    rows = encode_dataset(questions, tokenizer)
    training = TrainingConfig(options.steps, batch_size=3, learning_rate=1e-2)

    # LLaMA-Adapter V2, trained on the answers
    add_adaption_prompts(model, AdaptionPromptConfig(bias_scale=True, norms=True), "v2")
    v2 = parameter_report(model)
    finetune(model, tokenizer, rows, training)

    # A cartridge, trained to answer as the model does that has the document before it
    document_ids = tokenizer(DOCUMENT, return_tensors="pt").input_ids
    add_cartridge(model, document_ids, CartridgeConfig(num_virtual_tokens=8), "cartridge")
    cartridge = parameter_report(model)
    distances = finetune(model, tokenizer, rows, training, document_ids=document_ids).losses

    print(f"V2         {v2}\ncartridge  {cartridge}")
    print(f"from cartridge to reader: KL {distances[0]:.2f} -> {distances[-1]:.2f} nats a token")
    answers = {}
    for name in ("v2", "cartridge", None):
        with use_adapter(model, name):
            said = generate_answers(model, tokenizer, questions, max_new_tokens=12)
        answers[name or "base"] = said
        print(f"{name or 'base':<10} {' | '.join(said)}")
    return answers


if __name__ == "__main__":
    main()
