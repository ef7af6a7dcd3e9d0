"""The sampler: one base model and many adapters on vLLM.

`engine.SamplingEngine` samples and knows nothing of storage, queues or HTTP;
`environment.configure_environment` has to run before anything imports vLLM.
"""
