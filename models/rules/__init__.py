"""The language of the fraud rules: from one line of text to decisions, and a rule's way into force.

    text --parser--> syntax --checking--> tree --+--> one      compiled, a transaction at a time
                                                 +--> batch    NumPy, shared parts once
                                                 +--> history  SQL over the ledger

`vocabulary` says which facts and windows there are; `ruleset` is a version in force; `lifecycle` says who may
take a rule where; `store` keeps rules, lists and rates in Postgres; `backtest` says what a rule would have
done. See docs/adr/0060-rules.md.
"""
