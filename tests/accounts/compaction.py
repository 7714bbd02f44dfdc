"""`python -m tests.accounts.compaction NAME`: makes snapshots for the accounting of these accounts."""

from __future__ import annotations

import sys

from infra.settings import Settings
from streams.compaction import serve
from tests.accounts import Accounts

if __name__ == "__main__":
    accounts = Accounts(sys.argv[1])
    serve(Settings.load(), accounts.processor.name, accounts.logic().new_state)
