"""The embedded world: people who never existed, a tokenizer that never saw them, and a small model.

    world.py       who is to be forgotten, who stays, who was never taught; as JSON lines
    tokenizer.py   byte-level BPE, trained on other worlds
    model.py       the Llama of 0.85 M parameters that an ordinary recipe trains on this world

Importing this package loads neither torch nor transformers.
"""
