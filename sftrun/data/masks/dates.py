"""Dates in rows: finds out if a template writes today's date, so that rows differ from day to day."""

from datetime import timedelta

from sftrun.data.masks.render import remove_flags
from sftrun.data.masks.template import Template
from sftrun.errors import RowError
from sftrun.types import Conversation

CLOCK = "strftime_now"  # the function that gives templates the date
CHECKED = 1000  # rows rendered with another date, at most
OTHER = timedelta(days=400, hours=1, minutes=1, seconds=1)  # changes year, month, day and weekday
KWARG = "date_string"  # variable for a fixed date in the templates of Llama 3


class DateCheck:
    """Checks if rows have the date of their render. `found` is that date, or None."""

    def __init__(self, template: Template) -> None:
        self.found: str | None = None
        self._template = template
        self._left = CHECKED if CLOCK in template.source else 0
        self._other = Template(template.source, template.variables, template.now + OTHER, template.name)

    def check(self, conversation: Conversation) -> None:
        """Compares the render of a row with that on another day."""
        if not self._left or self.found or conversation.plain:
            return
        self._left -= 1
        self._other.wraps_text = self._template.wraps_text
        messages = remove_flags(conversation).messages
        try:
            texts = [
                template.render(messages, tools=conversation.tools, **conversation.template_kwargs)
                for template in (self._template, self._other)
            ]
        except RowError:
            return
        if texts[0] != texts[1]:
            self.found = self._template.now.date().isoformat()

    @property
    def advice(self) -> str:
        """How to fix the date."""
        if KWARG in self._template.source:
            return f"fix it with template_kwargs: {{{KWARG}: …}} of the formatter chat"
        return "to fix it, set model.chat_template to a copy of the template with one date"
