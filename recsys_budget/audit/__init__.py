"""Audits: does a model leak more than its epsilon says? They can find mistakes; they prove nothing."""

from recsys_budget.audit.membership import Attack, Membership, membership_test, own_likelihood
from recsys_budget.audit.one_run import OneRunAudit, audit_one_run, epsilon_lower_bound, one_item_users

__all__ = [
    "Attack",
    "Membership",
    "OneRunAudit",
    "audit_one_run",
    "epsilon_lower_bound",
    "membership_test",
    "one_item_users",
    "own_likelihood",
]
