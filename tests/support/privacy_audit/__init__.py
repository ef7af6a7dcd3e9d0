"""Audits of the privacy mechanism: does what was released stay within the epsilon that was claimed?

An audit plays the strongest adversary of the claim. It inserts *canaries*, units whose gradient it
chooses, each with probability 1/2; lets the real mechanism run; and looks at the releases to find out
which canaries were in. If it finds out more than the claimed (epsilon, delta) allows, the claim is wrong.

    dirac      runs the service's own functions (Ledger, ClippedSum, noisy_mean) over m canaries, canary i
               being a gradient on coordinate i alone: nothing else reaches that coordinate, which is the
               worst case of the analysis. Gives one score per canary, and the epsilon that the ledger
               charged.
    one_run    from guesses and truth of one run to a lower bound of epsilon, valid with 95 % confidence
               whatever the mechanism is (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846).
    estimate   mu of the scores, against the mu that the claim is worth. Two-sided: too much noise, or a
               sum that never arrives, is a bug too. It assumes Gaussian scores, so it proves nothing.
    neighbours the sensitivity of a clipped sum, with the noise off.
    planted    the classic bugs, put in by replacing the real functions while a test runs.

The gates fail on different bugs, so that all of them are needed; `tests/audit` says which catches which.
"""
