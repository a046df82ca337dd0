"""The explorer: choose an operating point on a frontier, and see what it does."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from recsys_budget import _html
from recsys_budget._extras import extra
from recsys_budget.errors import RecsysBudgetError, SpecificationError
from recsys_budget.frontiers import Frontier
from recsys_budget.privacy import PrivacyLedger
from recsys_budget.rerank.warm import warm_beside
from recsys_budget.widgets import panels
from recsys_budget.widgets.colab import allow_widgets
from recsys_budget.widgets.operating import Choice, Operation, Result

with extra("notebook"):
    import ipywidgets as widgets
    import traitlets

    from recsys_budget.widgets.privacy_path import PrivacyPath, delta_of
    from recsys_budget.widgets.sliders import LABELLED, STYLE, WIDE, RuleSliders
    from recsys_budget.widgets.spending import Spending
    from recsys_budget.widgets.view import FrontierView

_USERS_LISTED = 500


class Explorer(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """Sliders, a frontier to click, the slates of a user, the rules, the budget, and conflicts.

    Nothing here spends budget but one button, which names the amount and asks again.

    Args:
        frontiers: Made by :func:`~recsys_budget.frontiers.frontier` with a re-ranker, of the same users and
            rules: one over epsilon, one over the weight on diversity, some over rules.
        ledger: The ledger to show; needed for spending.
        spend: Called with an epsilon when the spending button has been confirmed; it trains within that and
            returns the new frontier over epsilon. Whatever it reserves is the ledger's business.
        user: Whose slates to show at first; None shows the first.
        before: Slates in use today, with columns user, item and rank, to compare with; None compares with
            each user's most relevant items.

    Attributes:
        value: The choice as a dict: ``epsilon``, ``diversity``, ``rules`` (a number a rule, by the name the
            rule had at first) and ``user``. Set it, or part of it, to choose from code; observe it to go on
            from what was clicked. A mistake raises and changes nothing.
        result: Slates and certificate, or conflict, at the choice.

    Raises:
        SpecificationError: A frontier has no re-ranker behind it, ``spend`` comes without a ledger, or the
            user has no candidates.
    """

    value = traitlets.Dict()

    def __init__(
        self,
        *frontiers: Frontier,
        ledger: PrivacyLedger | None = None,
        spend: Callable[[float], Frontier] | None = None,
        user: str | None = None,
        before: pd.DataFrame | None = None,
    ) -> None:
        if spend is not None and ledger is None:
            raise SpecificationError("spend= needs the ledger= that it spends from")
        self._ledger, self._train, self._in_use = ledger, spend, before
        self._operation = Operation(frontiers, before)
        self._choice = self._operation.start()
        self._busy = False
        users = self._operation.users(self._choice.epsilon)
        self._users = set(users)
        self._user = widgets.Combobox(
            options=users[:_USERS_LISTED],
            value=self._known(users[0] if user is None else user),
            description="Show user",
            **LABELLED,
            **WIDE,
        )
        self._user.observe(lambda _: self._show(), "value")
        self._status, self._conflict = widgets.HTML(), widgets.VBox()
        self._slates, self._rules, self._budget, self._providers = (widgets.HTML() for _ in range(4))
        self._spending: Spending | None = None
        if spend is not None and ledger is not None:
            self._spending = Spending(ledger, self._spend, self._plan)
        self._build()
        super().__init__()
        self.add_class("rb-explorer")
        self._assemble()
        self.observe(self._value_set, "value")
        self._show()

    # What it is made of

    def _build(self) -> None:
        """What depends on the frontiers."""
        operation = self._operation
        self._views = [
            FrontierView(frontier, partial(self._clicked, frontier)) for frontier in operation.frontiers
        ]
        self._which = widgets.ToggleButtons(
            options=[(frontier.swept, place) for place, frontier in enumerate(operation.frontiers)],
            description="Frontier of",
            style={"description_width": "initial", "button_width": "auto"},
        )
        self._which.observe(lambda _: self._draw(), "value")
        self._path: PrivacyPath | None = None
        if operation.path is not None:
            known = None if self._ledger is None else self._ledger.cap.delta
            self._path = PrivacyPath(operation.path, delta_of(operation.path, known))
            self._path.observe(lambda _: self._moved(), "epsilon")
        self._sliders = RuleSliders(operation, self._choice, self._moved)

    def _assemble(self) -> None:
        column = widgets.Layout(width="40em", max_width="95vw")
        parts = [self._path, self._sliders, self._user, self._status, self._conflict]
        left = widgets.VBox([part for part in parts if part is not None], layout=column)
        right = widgets.VBox([*([self._which] if len(self._views) > 1 else []), *self._views])
        self.children = [
            widgets.HTML(STYLE, layout=widgets.Layout(display="none")),
            widgets.HBox([left, right], layout=widgets.Layout(flex_flow="row wrap")),
            self._slates,
            self._rules,
            self._providers,
            self._budget,
            *([] if self._spending is None else [self._spending]),
        ]

    # What happens

    @property
    def result(self) -> Result:
        """Slates and certificate, or conflict, at the choice."""
        return self._operation.answer(self._choice)

    def _moved(self) -> None:
        if self._busy:
            return
        weight = self._sliders.weight
        self._choice = Choice(
            None if self._path is None else self._path.epsilon,
            None if weight is None else weight.value,
            self._sliders.numbers,
        )
        self._show()

    def _clicked(self, frontier: Frontier, point: int) -> None:
        self._choose(self._operation.at(frontier, point, self._choice))

    def _choose(self, choice: Choice) -> None:
        """Move the sliders to a choice, then show it once."""
        self._choice = choice
        self._show()

    def _known(self, user: str) -> str:
        if user not in self._users:
            raise SpecificationError(f"user {user!r} has no candidates here")
        return str(user)

    @traitlets.validate("value")  # type: ignore[untyped-decorator]
    def _complete(self, proposal: Mapping[str, Any]) -> dict[str, Any]:
        """What is set, with the rest as it is; nothing has changed when this raises."""
        new, old = proposal["value"], self._choice
        unknown = set(new) - {"epsilon", "diversity", "rules", "user"}
        unknown |= set(new.get("rules", {})) - set(old.numbers)
        if unknown:
            raise SpecificationError(f"{sorted(unknown)} cannot be chosen; see the keys of Explorer.value")
        epsilon = new.get("epsilon", old.epsilon)
        if epsilon != old.epsilon:
            within = [e for e in self._operation.epsilons if e <= epsilon + 1e-12]
            if not within:
                raise SpecificationError(
                    f"no model was trained within epsilon {epsilon}; there are {self._operation.epsilons}"
                )
            epsilon = within[-1]
        if old.diversity is None and new.get("diversity") is not None:
            raise SpecificationError("the objective has no weight on diversity; take EngagementDiversity()")
        user = self._known(new.get("user", self._user.value))
        chosen = Choice(epsilon, new.get("diversity", old.diversity), old.numbers | new.get("rules", {}))
        self._operation.answer(chosen)  # raises where a number is not allowed
        return self._value_of(chosen, user)

    def _value_of(self, choice: Choice, user: str) -> dict[str, Any]:
        return {
            "epsilon": choice.epsilon,
            "diversity": choice.diversity,
            "rules": dict(choice.numbers),
            "user": user,
        }

    def _value_set(self, change: Mapping[str, Any]) -> None:
        if self._busy:
            return
        new = change["new"]
        self._busy = True
        try:
            self._user.value = new["user"]
        finally:
            self._busy = False
        self._choose(Choice(new["epsilon"], new["diversity"], dict(new["rules"])))

    def _show(self) -> None:
        """Answer the choice and say everything anew."""
        if self._busy or self._user.value not in self._users:
            return  # on the way to somewhere, or somebody is typing
        self._say("Working...")
        try:
            result = self.result
        except RecsysBudgetError as error:
            self._say(str(error))
            return
        self._busy = True
        try:
            if self._path is not None and self._choice.epsilon is not None:
                self._path.epsilon = self._choice.epsilon
            self._sliders.move(self._choice)
            self.value = self._value_of(self._choice, self._user.value)
        finally:
            self._busy = False
        self._slates.value = panels.slates(self._operation, result, self._user.value)
        self._rules.value = panels.rules(self._operation, result, self._user.value)
        self._providers.value = panels.providers(self._operation, result)
        if self._spending is None:
            self._plan(0.0)
        else:
            self._spending.reset()
        self._show_conflict(result)
        if result.certificate is not None:
            figures = result.certificate
            self._say(
                f"Engagement {figures.engagement:.3f}, diversity {figures.diversity:.3f}; no hard rule is "
                f"violated; at most {figures.gap:.2%} from the best possible."
            )
        else:
            self._say("Impossible: the rules conflict. Nothing has changed for anybody.")
        self._draw()

    def _show_conflict(self, result: Result) -> None:
        if result.conflict is None:
            self._conflict.children = []
            return
        buttons = []
        for rule, relaxation in zip(result.conflict.constraints, result.conflict.relaxations, strict=True):
            looser = self._operation.relaxed(result, rule.name)
            if looser is not None:
                button = widgets.Button(
                    description=f"Relax: {relaxation}", layout=widgets.Layout(width="auto"), icon="check"
                )
                button.on_click(lambda _, looser=looser: self._choose(looser))
                buttons.append(button)
        self._conflict.children = [widgets.HTML(result.conflict._repr_html_()), *buttons]

    def _draw(self) -> None:
        for place, view in enumerate(self._views):
            frontier = view.frontier
            view.show(
                self._operation.place(frontier, self.result),
                self._operation.point(frontier, self._choice),
                self._said,
                shown=place == self._which.value,
            )

    def _say(self, words: str) -> None:
        self._said = words
        self._status.value = f'<p role="status">{_html.escape(words)}</p>'

    # Spending

    def _plan(self, amount: float) -> None:
        """Show the budget beside a plan to spend so much more."""
        self._budget.value = panels.budget(self._choice.epsilon, self._ledger, amount)

    def _spend(self, amount: float) -> None:
        assert self._train is not None
        try:
            path = self._train(amount)
        except RecsysBudgetError as error:
            self._say(f"Not done: {error}")
            return
        self._replace_path(path)

    def _replace_path(self, path: Frontier) -> None:
        """Go on with a new frontier over epsilon; what else was chosen stays."""
        others = [f for f in self._operation.frontiers if f is not self._operation.path]
        self._operation = Operation((path, *others), self._in_use)
        self._choice = replace(self._choice, epsilon=self._operation.epsilons[-1])
        self._build()
        self._assemble()
        self._show()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget; and for pages without a kernel a picture, and the same in words."""
        allow_widgets()
        warm_beside()  # whoever looks is about to move something
        view = self._views[self._which.value]
        words = view.words()
        bundle = super()._repr_mimebundle_(**options)
        bundle |= {"image/png": base64.b64encode(view.png()).decode("ascii"), "text/plain": words}
        return bundle, {"image/png": {"alt": words}}
