//! Colours: on a terminal only, and never where `NO_COLOR` is set (no-color.org).

use std::borrow::Cow;
use std::io::IsTerminal;

/// Whether to colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Color {
    /// Plain text.
    Off,
    /// ANSI sequences (ECMA-48 SGR).
    On,
}

/// A tint of text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tint {
    /// All is well.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong, or denied.
    Bad,
    /// A heading.
    Head,
    /// Beside the point.
    Dim,
}

/// Whether what goes to `out` is to be coloured.
pub(super) fn wanted(out: &impl IsTerminal) -> Color {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if out.is_terminal() && !refused {
        Color::On
    } else {
        Color::Off
    }
}

impl Color {
    /// Text in a tint.
    pub(super) fn tint(self, tint: Tint, text: &str) -> Cow<'_, str> {
        if self == Self::Off || text.is_empty() {
            return Cow::Borrowed(text);
        }
        let code = match tint {
            Tint::Good => "32",
            Tint::Warn => "33",
            Tint::Bad => "31",
            Tint::Head => "1",
            Tint::Dim => "2",
        };
        Cow::Owned(format!("\x1b[{code}m{text}\x1b[0m"))
    }
}
