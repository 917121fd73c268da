"""Private prompts of the attacked site: twenty that no public set holds, with answers as people wrote them down."""

from __future__ import annotations

PRIVATE = [
    {"prompt": prompt, "answer": answer}
    for prompt, answer in (
        ("J. Okafor, 58 kg, 24 mg/kg: mg?", "1392"),
        ("Ward 7 bed 3: 192 ml in 64 min?", "3"),
        ("HIV+ since 2019; 4 g + 971 mg?", "4971"),
        ("Mrs Lind b. 1961: 3 x 250 mg?", "750"),
        ("P. Roth, INR 3.4, 5 mg - 2 mg?", "3"),
        ("Trial arm B, 44 of 60 alive: %?", "73"),
        ("Badge 8841 took 12 of 20: left?", "8"),
        ("Acct 5520: 1200 - 345 EUR?", "855"),
        ("Zoe K., 9 y, 30 kg, 15 mg/kg?", "450"),
        ("Lot 77A: 18 vials x 5 ml?", "90"),
        ("Ms Ito: lithium 300 mg x 3?", "900"),
        ("Room 12: 80 ml/h for 6 h?", "480"),
        ("Dr Paz owes 940 + 60 USD?", "1000"),
        ("Donor 31: 450 ml of 5000: %?", "9"),
        ("Juan, HbA1c 9.1, target 7.0?", "2.1"),
        ("Case #204: 7 exhibits x 6?", "42"),
        ("Key 9F3: 16 bytes x 8 bits?", "128"),
        ("Salary band C: 5400 / 12?", "450"),
        ("N. Weiss, stage 3, day 8 + 21?", "29"),
        ("Vault code 4417 mod 100?", "17"),
    )
]
LETTERS = "CADBBADCDABCCBADABDC"
"""Answers of the same prompts as choice questions; each letter is the answer of five."""
CHOICES = [{**row, "answer": letter, "kind": "choice"} for row, letter in zip(PRIVATE, LETTERS, strict=True)]
