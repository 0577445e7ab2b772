//! Rust source as tokens, as far as the import rule needs it: no comments, no literals, no inline test modules.

/// A word or a punctuation mark, and its line (from 1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) line: usize,
}

/// A path that the source names, resolved as far as its file tells, and its line.
///
/// The first segment is `crate` for this crate's own modules, and otherwise a crate's name or something local.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Path {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
}

/// The tokens of a file, without inline `#[cfg(test)] mod`s.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    without_tests(&all_tokens(text))
}

fn all_tokens(text: &str) -> Vec<Token> {
    let characters: Vec<char> = text.chars().collect();
    let at = |index: usize| characters.get(index).copied().unwrap_or('\0');
    let (mut tokens, mut index, mut line) = (Vec::new(), 0, 1);
    while index < characters.len() {
        let start = index;
        let character = at(index);
        if character == '/' && at(index + 1) == '/' {
            while index < characters.len() && at(index) != '\n' {
                index += 1;
            }
        } else if character == '/' && at(index + 1) == '*' {
            index = block_comment_end(&characters, index);
        } else if let Some(end) = string_end(&characters, index) {
            index = end;
        } else if character == '\'' {
            index = quote_end(&characters, index);
        } else if character.is_alphanumeric() || character == '_' {
            while at(index).is_alphanumeric() || at(index) == '_' {
                index += 1;
            }
            tokens.push(Token {
                text: characters[start..index].iter().collect(),
                line,
            });
        } else if character == ':' && at(index + 1) == ':' {
            index += 2;
            tokens.push(Token {
                text: "::".to_owned(),
                line,
            });
        } else {
            index += 1;
            if !character.is_whitespace() {
                tokens.push(Token {
                    text: character.to_string(),
                    line,
                });
            }
        }
        line += characters[start..index]
            .iter()
            .filter(|character| **character == '\n')
            .count();
    }
    tokens
}

fn block_comment_end(characters: &[char], start: usize) -> usize {
    let (mut depth, mut index) = (0_usize, start);
    while index < characters.len() {
        match (characters[index], characters.get(index + 1)) {
            ('/', Some('*')) => (depth, index) = (depth + 1, index + 2),
            ('*', Some('/')) => (depth, index) = (depth - 1, index + 2),
            _ => index += 1,
        }
        if depth == 0 {
            break;
        }
    }
    index
}

/// The end of the string literal that starts here, of any kind: `"`, `b"`, `c"`, `r"`, `br#"`.
fn string_end(characters: &[char], start: usize) -> Option<usize> {
    let at = |index: usize| characters.get(index).copied().unwrap_or('\0');
    let mut index = start;
    if matches!(at(index), 'b' | 'c') {
        index += 1;
    }
    let raw = at(index) == 'r';
    if raw {
        index += 1;
    }
    let mut hashes = 0;
    while raw && at(index) == '#' {
        (hashes, index) = (hashes + 1, index + 1);
    }
    if at(index) != '"' {
        return None;
    }
    index += 1;
    while index < characters.len() {
        if at(index) == '\\' && !raw {
            index += 2;
        } else if at(index) == '"' && (1..=hashes).all(|hash| at(index + hash) == '#') {
            return Some(index + 1 + hashes);
        } else {
            index += 1;
        }
    }
    Some(characters.len())
}

/// The end of a character literal, or of the quote alone where it starts a lifetime.
fn quote_end(characters: &[char], start: usize) -> usize {
    let at = |index: usize| characters.get(index).copied().unwrap_or('\0');
    if at(start + 1) == '\\' {
        let mut index = start + 3;
        while index < characters.len() && at(index) != '\'' {
            index += 1;
        }
        index + 1
    } else if at(start + 2) == '\'' {
        start + 3
    } else {
        start + 1
    }
}

fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let is = |index: usize, text: &str| {
        tokens
            .get(index)
            .is_some_and(|token: &Token| token.text == text)
    };
    let (mut kept, mut index) = (Vec::new(), 0);
    while index < tokens.len() {
        let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
        if !attribute
            .iter()
            .enumerate()
            .all(|(offset, text)| is(index + offset, text))
        {
            kept.push(tokens[index].clone());
            index += 1;
            continue;
        }
        // The item behind it: to its `;`, or to the brace that closes it.
        index += attribute.len();
        let mut depth = 0_usize;
        while index < tokens.len() {
            match tokens[index].text.as_str() {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            let ends = depth == 0 && matches!(tokens[index].text.as_str(), ";" | "}");
            index += 1;
            if ends {
                break;
            }
        }
    }
    kept
}

/// The paths of a file that is the module `module` (segments below the crate's root).
pub(super) fn paths(tokens: &[Token], module: &[String]) -> Vec<Path> {
    let mut paths = Vec::new();
    // Names that a `use` binds: a path that starts with one was already seen there.
    let mut bound: Vec<String> = Vec::new();
    // Inline modules around this token: name and the depth of braces inside.
    let (mut inline, mut depth): (Vec<(String, usize)>, usize) = (Vec::new(), 0);
    let mut index = 0;
    while index < tokens.len() {
        let here: Vec<String> = module
            .iter()
            .cloned()
            .chain(inline.iter().map(|(name, _)| name.clone()))
            .collect();
        match tokens[index].text.as_str() {
            "{" => {
                depth += 1;
                if index >= 2 && tokens[index - 2].text == "mod" {
                    inline.push((tokens[index - 1].text.clone(), depth));
                }
                index += 1;
            }
            "}" => {
                inline.retain(|(_, inside)| *inside != depth);
                depth = depth.saturating_sub(1);
                index += 1;
            }
            // `impl Trait + use<'a>` captures a lifetime and imports nothing.
            "use" if tokens.get(index + 1).is_some_and(|token| token.text == "<") => index += 1,
            "use" => {
                let mut found = Vec::new();
                index = use_tree(tokens, index + 1, &[], &mut found, &mut bound);
                paths.extend(found.into_iter().map(|path| resolve(path, &here)));
            }
            word if is_word(word) => {
                let (path, end) = plain_path(tokens, index);
                let before = |back: usize| {
                    index
                        .checked_sub(back)
                        .map_or("", |at| tokens[at].text.as_str())
                };
                // `::aya::x` names a crate whatever is bound here; `Vec::<T>::new` and `x.y::<T>()` continue.
                let global = before(1) == "::" && before(2) != ">";
                let continues = before(1) == "." || (before(1) == "::" && !global);
                let known = !global && bound.contains(&path.segments[0]);
                if path.segments.len() > 1 && !continues && !known {
                    paths.push(resolve(path, &here));
                }
                index = end;
            }
            _ => index += 1,
        }
    }
    paths
}

fn is_word(text: &str) -> bool {
    text.starts_with(|character: char| character.is_alphabetic() || character == '_')
}

/// `a::b::c` from here, and the index behind it.
fn plain_path(tokens: &[Token], start: usize) -> (Path, usize) {
    let mut segments = vec![tokens[start].text.clone()];
    let mut index = start + 1;
    while index + 1 < tokens.len() && tokens[index].text == "::" && is_word(&tokens[index + 1].text)
    {
        segments.push(tokens[index + 1].text.clone());
        index += 2;
    }
    (
        Path {
            segments,
            line: tokens[start].line,
        },
        index,
    )
}

/// Reads one tree of a `use`: pushes a path for each leaf, notes the names bound, returns the index behind it.
fn use_tree(
    tokens: &[Token],
    mut index: usize,
    prefix: &[String],
    found: &mut Vec<Path>,
    bound: &mut Vec<String>,
) -> usize {
    let mut segments = prefix.to_vec();
    let line = tokens.get(index).map_or(0, |token| token.line);
    while let Some(token) = tokens.get(index) {
        match token.text.as_str() {
            "::" => index += 1,
            "{" => {
                index += 1;
                // A `;` inside braces is no import's: what looked like one ends here, or this would never end.
                while tokens
                    .get(index)
                    .is_some_and(|token| !matches!(token.text.as_str(), "}" | ";"))
                {
                    index = use_tree(tokens, index, &segments, found, bound);
                    if tokens.get(index).is_some_and(|token| token.text == ",") {
                        index += 1;
                    }
                }
                return index + 1;
            }
            "as" => {
                bound.extend(tokens.get(index + 1).map(|token| token.text.clone()));
                found.push(Path { segments, line });
                return index + 2;
            }
            "," | "}" | ";" => break,
            _ => {
                segments.push(token.text.clone());
                index += 1;
            }
        }
    }
    // `use aya;` and `use crate::aya::{self}` bind the last name that is one.
    bound.extend(
        segments
            .iter()
            .rev()
            .find(|segment| *segment != "self")
            .cloned(),
    );
    found.push(Path { segments, line });
    index
}

/// Makes `self::` and `super::` start with `crate`.
fn resolve(path: Path, module: &[String]) -> Path {
    let mut above = module.len();
    let mut rest = path.segments.as_slice();
    let mut relative = false;
    while let Some((first, behind)) = rest.split_first() {
        match first.as_str() {
            "self" if !relative => {}
            "super" => above = above.saturating_sub(1),
            _ => break,
        }
        (relative, rest) = (true, behind);
    }
    if !relative {
        return path;
    }
    let root = std::iter::once("crate".to_owned());
    let segments = root
        .chain(module[..above].iter().cloned())
        .chain(rest.iter().cloned())
        .collect();
    Path {
        segments,
        line: path.line,
    }
}

#[cfg(test)]
mod tests {
    use super::{paths, tokens};

    fn found(module: &str, text: &str) -> Vec<String> {
        let module: Vec<String> = module
            .split("::")
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        paths(&tokens(text), &module)
            .into_iter()
            .map(|path| path.segments.join("::"))
            .collect()
    }

    #[test]
    fn trees_are_spread_out_and_relative_paths_resolved() {
        let text = "use crate::{model::{Pod, Text as T}, desired};\nuse super::policy::Set;\nuse self::inner::X;";
        assert_eq!(
            found("compile::service", text),
            [
                "crate::model::Pod",
                "crate::model::Text",
                "crate::desired",
                "crate::compile::policy::Set",
                "crate::compile::service::inner::X"
            ]
        );
    }

    #[test]
    fn comments_literals_and_tests_do_not_count() {
        let text = "// aya::Ebpf\n/* /* aya::A */ aya::B */ const A: &str = \"aya::C\"; const B: &str = r#\"aya::\"D\"#;\n\
                    fn f<'a>(x: &'a str) -> char { '\"' }\n#[cfg(test)]\nmod tests { use aya::E; fn f() { {} } }\nfn g() { kube::h() }";
        assert_eq!(found("x", text), ["kube::h"]);
    }

    #[test]
    fn a_captured_lifetime_is_no_import() {
        let text = "fn f() -> impl Iterator + use<> { a::b(); c; } fn g() -> impl Fn() + use<'_> { d::e(); f; }";
        assert_eq!(found("x", text), ["a::b", "d::e"]);
    }

    #[test]
    fn a_name_that_a_use_binds_is_not_a_crate() {
        assert_eq!(
            found("app", "use crate::source::kube;\nfn f() { kube::start() }"),
            ["crate::source::kube"]
        );
    }

    #[test]
    fn paths_in_code_count_and_inline_modules_shift_super() {
        assert_eq!(
            found("plan", "fn f() { crate::compile::g(); }"),
            ["crate::compile::g"]
        );
        assert_eq!(
            found("plan", "mod inner { use super::super::compile; }"),
            ["crate::compile"]
        );
    }
}
