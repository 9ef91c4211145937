"""A small application: books random entries into a database and prints the balance of each account."""

import collections
import decimal
import json
import random
import sqlite3

random.seed(2006)
book = sqlite3.connect(":memory:")
book.execute("create table entry (account text, amount text)")
accounts = ["rent", "food", "books", "travel"]
for _ in range(400):
    amount = decimal.Decimal(random.randrange(-9999, 9999)) / 100
    book.execute("insert into entry values (?, ?)", (random.choice(accounts), str(amount)))

balance = collections.defaultdict(decimal.Decimal)
for account, amount in book.execute("select account, amount from entry"):
    balance[account] += decimal.Decimal(amount)
print("ledger:", json.dumps({name: str(total) for name, total in sorted(balance.items())}), flush=True)
