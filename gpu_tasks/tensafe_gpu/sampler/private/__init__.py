"""Private adapters inside vLLM: their weights stay with an adapter holder, activations stay here.

    adapter.py      what the sampler knows of a private adapter, and its name inside vLLM
    placing.py      which of vLLM's layers an adapter's sites belong to
    holders.py      the open adapters of a worker: opened in the background, closed at the first failure
    budget.py       what an adapter may take of a forward pass
    step.py         the rows of one forward pass by request, and what was evaluated for each
    injection.py    the layers that add the deltas; never raises in a forward pass
    extension.py    the worker's methods that the sampler calls
    preparing.py    preprocessing kept ahead of demand
    serving.py      the sampler's side: admission, watching, counting

docs/vllm.md lists what of vLLM is touched.
"""
