"""A small BERT for question answering, trained from scratch with transformers (4 layers x 256, batch 8 x 64, padding), and
asked under no_grad and under inference_mode in between."""
import sys

import torch
from transformers import BertConfig, BertForQuestionAnswering, get_linear_schedule_with_warmup


def make_batch(config):
    tokens = torch.randint(0, config.vocab_size, (8, 64))
    lengths = torch.randint(32, 65, (8, 1))
    mask = (torch.arange(64)[None] < lengths).long()
    start = torch.randint(0, 32, (8,))
    return {"input_ids": tokens, "attention_mask": mask, "start_positions": start, "end_positions": start + 3}


def evaluate(model, batch):
    """The share of answers that are right."""
    model.eval()
    with torch.no_grad():
        outputs = model(**batch)
    with torch.inference_mode():
        again = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        right = (again.start_logits.argmax(-1) == batch["start_positions"]).float().mean()
    model.train()
    return outputs.loss.item(), right.item()


def main(steps=30):
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(num_hidden_layers=4, hidden_size=256, num_attention_heads=4,
                                                intermediate_size=1024, vocab_size=4096))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    scheduler = get_linear_schedule_with_warmup(optimizer, 2, max(steps, 3))
    for step in range(steps):
        batch = make_batch(model.config)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            held_out, right = evaluate(model, make_batch(model.config))
            print(f"step {step} loss {loss.item():.6f} held out {held_out:.6f} right {right:.3f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
