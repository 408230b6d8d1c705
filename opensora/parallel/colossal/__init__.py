"""Adapters to ColossalAI: the import and its accelerator (S1), ZeRO (S2), tensor parallelism (S5), T5 (S6).

Every shim subclasses a ColossalAI class and says in one line what it changes. They were written against colossalai 0.5.0;
tests/contract/test_adapter_privates.py names the private attributes they use and fails when one is gone.
"""
