"""The explorer: choose an operating point on a frontier, and see what it does."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from recsys_budget import _html
from recsys_budget._extras import extra
from recsys_budget.errors import RecsysBudgetError, SpecificationError
from recsys_budget.frontiers import Frontier
from recsys_budget.privacy import PrivacyLedger, round_up
from recsys_budget.widgets import panels
from recsys_budget.widgets.operating import Choice, Operation, Result
from recsys_budget.widgets.picture import Picture

with extra("notebook"):
    import ipywidgets as widgets
    import traitlets

    from recsys_budget.widgets.front import FrontierFront, chart_of

_WIDE = widgets.Layout(width="30em")
_NAMED = {"description_width": "14em"}


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
            from what was clicked.
        result: Slates and certificate, or conflict, at the choice.

    Raises:
        SpecificationError: A frontier has no re-ranker behind it, or ``spend`` comes without a ledger.
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
        self._ledger, self._spend = ledger, spend
        self._in_use = before
        self._operation = Operation(frontiers, before)
        self._choice = self._operation.start()
        self._busy = False
        users = self._operation.users(self._choice.epsilon)
        self._user = widgets.Combobox(
            options=users[:500],
            value=str(user or users[0]),
            description="Show user",
            style=_NAMED,
            layout=_WIDE,
        )
        self._users = set(users)
        self._controls: dict[str, Any] = {}
        self._status = widgets.HTML()
        self._picture = widgets.HTML()
        self._slates, self._rules, self._budget = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._conflict, self._spending = widgets.VBox(), widgets.VBox()
        self._build_fronts()
        self._build_controls()
        self._user.observe(lambda _: self._show(), "value")
        super().__init__()
        self._assemble()
        self.observe(self._value_set, "value")
        self._show()

    # What it is made of

    def _build_fronts(self) -> None:
        self._fronts = [FrontierFront(chart=chart_of(f)) for f in self._operation.frontiers]
        self._pictures = [Picture(f) for f in self._operation.frontiers]
        for place, front in enumerate(self._fronts):
            front.observe(lambda change, place=place: self._clicked(place, change["new"]), "selected")
            front.observe(lambda _: self._draw(), "loaded")
        names = [f.swept for f in self._operation.frontiers]
        self._which = widgets.ToggleButtons(
            options=[(name, place) for place, name in enumerate(names)],
            description="Frontier of",
            style={**_NAMED, "button_width": "auto"},
        )
        self._which.observe(lambda _: self._draw(), "value")

    def _build_controls(self) -> None:
        start = self._choice
        if self._operation.epsilons:
            self._controls["epsilon"] = widgets.SelectionSlider(
                options=[(f"{round_up(e):g}", e) for e in self._operation.epsilons],
                value=start.epsilon,
                description="epsilon (paid for)",
                style=_NAMED,
                layout=_WIDE,
                continuous_update=True,
            )
            path = self._operation.path
            assert path is not None
            self._wanted = widgets.BoundedFloatText(
                value=float(path.frame[path.y].max()),
                min=0.0,
                max=1.0,
                step=0.005,
                description=f"or wanted {path.y}",
                style=_NAMED,
                layout=widgets.Layout(width="22em"),
            )
            self._wanted.observe(self._want, "value")
        if start.diversity is not None:
            self._controls["diversity"] = widgets.FloatSlider(
                value=start.diversity,
                min=0.0,
                max=1.0,
                step=0.01,
                description="weight on diversity",
                style=_NAMED,
                layout=_WIDE,
            )
        k = self._operation.reranker.slate_size
        for rule in self._operation.reranker.constraints:
            if rule.name not in start.numbers:
                continue
            number = start.numbers[rule.name]
            whole = float(number).is_integer() and not isinstance(number, float)
            swept = [p.value for f in self._operation.frontiers if f.swept == rule.name for p in f.points]
            most = max(k if rule.scope == "user" and whole else 0, 2 * number, *swept, 1)
            kind = widgets.IntSlider if whole else widgets.FloatSlider
            self._controls[rule.name] = kind(
                value=number,
                min=0,
                max=most,
                step=1 if whole else most / 100,
                description=rule.name,
                style=_NAMED,
                layout=_WIDE,
            )
        for control in self._controls.values():
            control.observe(lambda _: self._moved(), "value")

    def _assemble(self) -> None:
        rows = []
        for name, control in self._controls.items():
            if isinstance(control, widgets.SelectionSlider):
                rows.append(control)
                continue
            # A box beside each slider: a screen reader names it, and a number can be typed.
            box = widgets.BoundedFloatText(
                min=control.min, max=control.max, step=control.step, layout=widgets.Layout(width="6em")
            )
            box.tooltip = f"{name}, as a number"
            widgets.link((control, "value"), (box, "value"))
            rows.append(widgets.HBox([control, box]))
        if self._operation.epsilons:
            rows.insert(1, self._wanted)
        head = [self._which] if len(self._fronts) > 1 else []
        column = widgets.Layout(width="40em", max_width="95vw")
        left = widgets.VBox([*rows, self._user, self._status, self._conflict], layout=column)
        right = widgets.VBox([*head, *self._fronts, self._picture])
        self.children = [
            widgets.HBox([left, right], layout=widgets.Layout(flex_flow="row wrap")),
            self._slates,
            self._rules,
            self._budget,
            self._spending,
        ]
        self._offer_spending()

    # What happens

    @property
    def result(self) -> Result:
        """Slates and certificate, or conflict, at the choice."""
        return self._operation.answer(self._choice)

    def _moved(self) -> None:
        if self._busy:
            return
        values = {name: control.value for name, control in self._controls.items()}
        self._choice = Choice(
            values.get("epsilon", self._choice.epsilon),
            values.get("diversity", self._choice.diversity),
            {name: values[name] for name in self._choice.numbers},
        )
        self._show()

    def _clicked(self, place: int, selected: int) -> None:
        if self._busy or selected < 0:
            return
        self._choose(self._operation.at(self._operation.frontiers[place], selected, self._choice))

    def _choose(self, choice: Choice) -> None:
        """Move the sliders to a choice, then show it once."""
        self._choice = choice
        self._busy = True
        try:
            for name, control in self._controls.items():
                number = {"epsilon": choice.epsilon, "diversity": choice.diversity}.get(name)
                if name not in ("epsilon", "diversity"):
                    number = choice.numbers[name]
                    control.min, control.max = min(control.min, number), max(control.max, number)
                control.value = number
        finally:
            self._busy = False
        self._show()

    def _value_set(self, change: Mapping[str, Any]) -> None:
        if self._busy:
            return
        new = change["new"]
        unknown = set(new) - {"epsilon", "diversity", "rules", "user"}
        unknown |= set(new.get("rules", {})) - set(self._choice.numbers)
        if unknown:
            raise SpecificationError(f"{sorted(unknown)} cannot be chosen; see the keys of Explorer.value")
        epsilon = new.get("epsilon", self._choice.epsilon)
        if epsilon != self._choice.epsilon:
            within = [e for e in self._operation.epsilons if e <= epsilon + 1e-12]
            if not within:
                raise SpecificationError(
                    f"no model was trained within epsilon {epsilon}; there are {self._operation.epsilons}"
                )
            epsilon = within[-1]
        if new.get("user", self._user.value) not in self._users:
            raise SpecificationError(f"user {new['user']!r} has no candidates here")
        self._user.value = new.get("user", self._user.value)
        numbers = {**self._choice.numbers, **new.get("rules", {})}
        self._choose(Choice(epsilon, new.get("diversity", self._choice.diversity), numbers))

    def _want(self, change: Mapping[str, Any]) -> None:
        """The least epsilon that gives the utility wanted."""
        path = self._operation.path
        assert path is not None
        reaching = [
            point.value
            for point, utility in zip(path.points, path.frame[path.y], strict=True)
            if utility >= change["new"] - 1e-12
        ]
        if reaching:
            self._choose(replace(self._choice, epsilon=min(reaching)))
        else:
            best = path.frame[path.y].max()
            self._say(f"No model on this path reaches {path.y} {change['new']:.3f}; the best has {best:.3f}.")

    def _show(self) -> None:
        """Answer the choice and say everything anew."""
        if self._user.value not in self._users:
            return  # somebody is typing
        self._say("Working...")
        try:
            result = self.result
        except RecsysBudgetError as error:
            self._say(str(error))
            return
        self._busy = True
        try:
            self.value = {
                "epsilon": self._choice.epsilon,
                "diversity": self._choice.diversity,
                "rules": dict(self._choice.numbers),
                "user": self._user.value,
            }
        finally:
            self._busy = False
        self._slates.value = panels.slates(self._operation, result, self._user.value)
        self._rules.value = panels.rules(self._operation, result, self._user.value)
        self._budget.value = panels.budget(self._choice.epsilon, self._ledger, 0.0)
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

    def _now(self, frontier: Frontier) -> tuple[float, float] | None:
        """Where the choice stands on a frontier's axes."""
        if frontier is self._operation.path:
            row = next(i for i, p in enumerate(frontier.points) if p.value == self._choice.epsilon)
            return float(frontier.frame[frontier.x].iloc[row]), float(frontier.frame[frontier.y].iloc[row])
        certificate = self.result.certificate
        if certificate is None:
            return None
        y = float(getattr(certificate, frontier.y))
        if frontier.swept == "diversity":
            return float(getattr(certificate, frontier.x)), y
        return float(self._choice.numbers[frontier.swept]), y

    def _draw(self) -> None:
        shown = self._which.value or 0
        for place, (front, frontier) in enumerate(zip(self._fronts, self._operation.frontiers, strict=True)):
            front.layout.display = "" if place == shown else "none"
            now = self._now(frontier)
            front.now = [] if now is None else list(now)
            self._busy, before = True, self._busy
            front.selected = self._place(frontier)
            self._busy = before
        # Pages that run the front need no picture.
        if self._fronts[shown].loaded:
            self._picture.value = ""
        else:
            self._picture.value = self._pictures[shown].html(self._now(self._operation.frontiers[shown]))

    def _place(self, frontier: Frontier) -> int:
        """The point of a frontier that is the choice; -1 where none is."""
        for place in range(len(frontier)):
            if self._operation.at(frontier, place, self._choice) == self._choice:
                return place
        return -1

    def _say(self, words: str) -> None:
        self._status.value = f'<p role="status" aria-live="polite">{_html.escape(words)}</p>'

    # Spending

    def _offer_spending(self) -> None:
        if self._spend is None or self._ledger is None:
            return
        left = self._ledger.remaining
        amount = widgets.BoundedFloatText(
            value=round(left / 2, 2),
            min=0.0,
            max=left,
            step=0.1,
            description="epsilon to spend",
            style=_NAMED,
        )
        ask = widgets.Button(description="", layout=widgets.Layout(width="auto"), button_style="warning")
        yes = widgets.Button(description="", layout=widgets.Layout(width="auto"), button_style="danger")
        no = widgets.Button(description="Cancel")
        confirm = widgets.HBox([yes, no], layout=widgets.Layout(display="none"))

        def name(_: object = None) -> None:
            ask.description = f"Train with epsilon {amount.value:g}..."
            yes.description = f"Spend epsilon {amount.value:g} for good"
            confirm.layout.display = "none"
            assert self._ledger is not None
            plan = self._ledger.spent + amount.value
            self._budget.value = panels.budget(self._choice.epsilon, self._ledger, plan)

        def asked(_: object) -> None:
            confirm.layout.display = ""

        def confirmed(_: object) -> None:
            assert self._spend is not None
            confirm.layout.display = "none"
            try:
                path = self._spend(float(amount.value))
            except RecsysBudgetError as error:
                self._say(f"Not done: {error}")
                return
            self._replace_path(path)

        amount.observe(name, "value")
        ask.on_click(asked)
        yes.on_click(confirmed)
        no.on_click(name)
        self._spending.children = [widgets.HBox([amount, ask]), confirm]
        name()

    def _replace_path(self, path: Frontier) -> None:
        """Go on with a new frontier over epsilon; what else was chosen stays."""
        others = [f for f in self._operation.frontiers if f is not self._operation.path]
        self._operation = Operation((path, *others), self._in_use)
        self._choice = replace(self._choice, epsilon=self._operation.epsilons[-1])
        self._controls = {}
        self._build_fronts()
        self._build_controls()
        self._choose(self._choice)
        self._assemble()
        self._show()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and for pages without a kernel a picture and the same in words."""
        bundle = super()._repr_mimebundle_(**options)
        shown = self._which.value or 0
        frontier = self._operation.frontiers[shown]
        png = self._pictures[shown].png(self._now(frontier))
        bundle["image/png"] = base64.b64encode(png).decode("ascii")
        bundle["text/plain"] = frontier.describe()
        return bundle
