//! Rules, and the recipe file.

use std::fmt::Write as _;
use std::path::Path;

use regex::Regex;
use serde::Deserialize;

use super::{Error, Result, Scheme};
use crate::family::{self, Role};

/// Which weights, and what becomes of them.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Matches weights whose name contains a match; any name if absent.
    pub name: Option<Regex>,
    /// Matches weights of this role; any role if absent.
    pub role: Option<Role>,
    /// The treatment; `None` keeps the weight as it is.
    pub scheme: Option<Scheme>,
}

/// An ordered list of rules; the first that matches a weight decides. A weight that none matches is kept.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    /// The rules.
    pub rules: Vec<Rule>,
}

impl Rule {
    /// A rule for everything that a scheme takes by default.
    pub fn scheme(scheme: Scheme) -> Self {
        Self { name: None, role: None, scheme: Some(scheme) }
    }

    /// Whether the rule decides about a weight. A rule that names neither a name nor a role decides about the weights that
    /// its scheme takes by default.
    pub fn matches(&self, name: &str, role: Role, model: Option<family::Kind>) -> bool {
        match (&self.name, self.role, self.scheme) {
            (None, None, Some(scheme)) => scheme.takes(role, model),
            (pattern, wanted, _) => {
                pattern.as_ref().is_none_or(|pattern| pattern.is_match(name)) && wanted.is_none_or(|wanted| wanted == role)
            }
        }
    }

    /// The rule in a recipe's own words.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        if let Some(name) = &self.name {
            let _ = write!(text, "name ~ {name} ");
        }
        if let Some(role) = self.role {
            let _ = write!(text, "role = {role} ");
        }
        let _ = write!(text, "→ {}", self.scheme.map_or("keep", Scheme::name));
        text.trim().to_owned()
    }
}

impl Recipe {
    /// The recipe that flags stand for: what is kept by name, embeddings if asked for, and one scheme.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn from_flags(scheme: Scheme, keep: &[String], embeddings: bool) -> Result<Self> {
        let mut rules = Vec::new();
        for pattern in keep {
            let name = Regex::new(pattern).map_err(|e| Error::Usage(format!("--keep {pattern}: {e}")))?;
            rules.push(Rule { name: Some(name), role: None, scheme: None });
        }
        if embeddings {
            for role in [Role::Embedding, Role::Head] {
                rules.push(Rule { name: None, role: Some(role), scheme: Some(scheme) });
            }
        }
        rules.push(Rule::scheme(scheme));
        Ok(Self { rules })
    }

    /// Reads a recipe file: TOML, a list of `[[rule]]`, each with `name` (a regular expression) or `role` or both or
    /// neither, and `scheme` (a scheme's name, or `"keep"`).
    ///
    /// # Errors
    /// A file that cannot be read or says something else.
    pub fn read(file: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            rule: Vec<Line>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Line {
            name: Option<String>,
            role: Option<String>,
            scheme: String,
        }
        let wrong = |found: String, expected: String| Error::Recipe { file: file.to_owned(), found, expected };
        let text = std::fs::read_to_string(file).map_err(formats::Error::io(file, "read"))?;
        let parsed: File = toml::from_str(&text).map_err(|e| {
            wrong(format!("does not parse: {}", e.message()), "[[rule]] tables with name, role and scheme".into())
        })?;
        let mut rules = Vec::new();
        for (i, line) in parsed.rule.into_iter().enumerate() {
            let at = format!("rule {}", i + 1);
            let name = match line.name {
                Some(text) => {
                    Some(Regex::new(&text).map_err(|e| wrong(format!("{at}: name: {e}"), "a regular expression".into()))?)
                }
                None => None,
            };
            let role = match line.role {
                Some(text) => Some(Role::from_name(&text).ok_or_else(|| {
                    wrong(format!("{at}: role `{text}`"), Role::ALL.map(Role::name).join(", "))
                })?),
                None => None,
            };
            let scheme = match line.scheme.as_str() {
                "keep" => None,
                text => Some(Scheme::from_name(text).ok_or_else(|| {
                    wrong(format!("{at}: scheme `{text}`"), format!("keep, {}", Scheme::ALL.map(Scheme::name).join(", ")))
                })?),
            };
            rules.push(Rule { name, role, scheme });
        }
        if rules.is_empty() {
            return Err(wrong("no rule".into(), "at least one [[rule]]".into()));
        }
        Ok(Self { rules })
    }

    /// The schemes that the rules name, each once, in their order.
    pub fn schemes(&self) -> Vec<Scheme> {
        let mut schemes = Vec::new();
        for scheme in self.rules.iter().filter_map(|rule| rule.scheme) {
            if !schemes.contains(&scheme) {
                schemes.push(scheme);
            }
        }
        schemes
    }

    /// What the output is called: the scheme, or `mixed`.
    pub fn short_name(&self) -> String {
        match self.schemes().as_slice() {
            [] => "kept".to_owned(),
            [scheme] => scheme.name().to_owned(),
            _ => "mixed".to_owned(),
        }
    }

    /// The rules in one line, as they stand in reports and in the written file's metadata.
    pub fn describe(&self) -> String {
        self.rules.iter().map(Rule::describe).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let recipe = Recipe::from_flags(Scheme::Int8, &["layers\\.0\\.".into()], false).unwrap();
        let decide = |name: &str, role| {
            recipe.rules.iter().position(|rule| rule.matches(name, role, Some(family::Kind::Decoder)))
        };
        assert_eq!(decide("model.layers.0.mlp.up_proj.weight", Role::Linear), Some(0));
        assert_eq!(decide("model.layers.1.mlp.up_proj.weight", Role::Linear), Some(1));
        assert_eq!(decide("model.embed_tokens.weight", Role::Embedding), None);
        assert_eq!(decide("lm_head.weight", Role::Head), None);
        assert_eq!(recipe.describe(), "name ~ layers\\.0\\. → keep; → int8");
        assert!(recipe.rules[1].matches("embeddings.word_embeddings.weight", Role::Embedding, Some(family::Kind::Encoder)));
    }

    #[test]
    fn a_recipe_file_says_what_is_wrong_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Recipe::read(&path).map(|recipe| recipe.describe()).map_err(|e| e.to_string())
        };
        let text = "[[rule]]\nrole = \"head\"\nscheme = \"keep\"\n[[rule]]\nname = \"mlp\"\nscheme = \"w8a8\"\n[[rule]]\nscheme = \"f16\"\n";
        assert_eq!(read(text).unwrap(), "role = head → keep; name ~ mlp → int8; → f16");
        for (text, word) in [
            ("", "rule"),
            ("rule = []", "no rule"),
            ("[[rule]]\nscheme = \"int5\"", "int5"),
            ("[[rule]]\nrole = \"heads\"\nscheme = \"int8\"", "heads"),
            ("[[rule]]\nname = \"(\"\nscheme = \"int8\"", "name"),
            ("[[rule]]\nschema = \"int8\"", "schema"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(word) && error.contains("r.toml"), "{error}");
        }
    }
}
