//! Rules, and the recipe file.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{Error, Result, Scheme};
use crate::dialect::huggingface;
use crate::family::{self, Role};
use crate::loader::Checkpoint;
use crate::pruner::parts::Parts;
use crate::pruner::{Recovery, Solver, Sparsity};
use crate::quantizer::Method;
use crate::quantizer::imatrix::Imatrix;

/// Which weights, and what becomes of them.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Matches weights whose name contains a match; any name if absent.
    pub name: Option<Regex>,
    /// Matches weights of this role; any role if absent.
    pub role: Option<Role>,
    /// The treatment; `None` keeps the numbers as they are stored.
    pub scheme: Option<Scheme>,
    /// What is removed before that, of matrices: of those of linear layers, or of any that the rule names.
    pub prune: Option<Sparsity>,
}

/// A recipe as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    rule: Vec<Line>,
}

/// A rule as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    scheme: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    prune: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prune_method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prune_scope: Option<String>,
}

impl Line {
    /// What its three words about pruning mean together.
    fn sparsity(&self) -> Result<Option<Sparsity>, String> {
        let Some(pattern) = &self.prune else {
            return match self.prune_method.is_some() || self.prune_scope.is_some() {
                true => Err("prune_method and prune_scope without prune".to_owned()),
                false => Ok(None),
            };
        };
        let method = self.prune_method.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        let scope = self.prune_scope.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        Sparsity::new(pattern.parse()?, method, scope).map(Some)
    }
}

/// An ordered list of rules; the first that matches a weight decides. A weight that none matches is kept.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    /// The rules.
    pub rules: Vec<Rule>,
    /// How block types and groups are encoded.
    pub blocks: BlockOptions,
    /// Whether and how what is left of pruned layers is refitted.
    pub recovery: Option<Recovery>,
    /// What becomes of weights that are quantized already.
    pub quantized: Quantized,
    /// Parts of the model that are removed before anything else.
    pub parts: Parts,
}

/// What becomes of weights that are quantized already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Quantized {
    /// The model is refused: what was rounded once is not rounded again.
    #[default]
    Refuse,
    /// They keep their encoding.
    Keep,
    /// They are unpacked to floats.
    Unpack,
}

/// How block types and groups are encoded.
#[derive(Debug, Clone, Default)]
pub struct BlockOptions {
    /// Whether every matrix gets the scheme's one type, instead of llama-quantize's mixture.
    pub pure: bool,
    /// How codes are looked for.
    pub method: Method,
    /// How much each column of each weight matters.
    pub importance: Option<Arc<Imatrix>>,
    /// Columns that share a scale in w4a16 and w8a16, 0 for whole rows; 128 if absent.
    pub group: Option<u64>,
}

impl BlockOptions {
    /// The options in words, each after a comma.
    fn describe(&self) -> String {
        let method = (self.method != Method::Rtn, self.method.name());
        let words = [(self.pure, "pure"), method, (self.importance.is_some(), "imatrix")];
        let words = words.iter().filter(|(on, _)| *on).map(|(_, word)| format!(", {word}"));
        words.chain(self.group.map(|group| format!(", groups of {group}"))).collect()
    }
}

impl Rule {
    /// A rule for everything that a scheme takes by default.
    pub fn scheme(scheme: Scheme) -> Self {
        Self { name: None, role: None, scheme: Some(scheme), prune: None }
    }

    /// Whether the rule decides about a weight. A rule that names neither a name nor a role decides about the weights that
    /// its scheme takes by default.
    pub fn matches(&self, name: &str, role: Role, model: Option<family::Kind>) -> bool {
        match (&self.name, self.role, self.scheme) {
            (None, None, Some(scheme)) => scheme.takes(role, model),
            (pattern, wanted, _) => {
                pattern.as_ref().is_none_or(|pattern| pattern.is_match(name))
                    && wanted.is_none_or(|wanted| wanted == role)
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
        let _ = match (&self.prune, self.scheme) {
            (Some(prune), None) => write!(text, "→ {prune}"),
            (Some(prune), Some(scheme)) => write!(text, "→ {prune}, {scheme}"),
            (None, scheme) => write!(text, "→ {}", scheme.map_or("keep", Scheme::name)),
        };
        text.trim().to_owned()
    }
}

impl Recipe {
    /// The recipe that flags stand for: what is kept by name, embeddings if asked for, and one scheme.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn from_flags(scheme: Scheme, keep: &[String], embeddings: bool) -> Result<Self> {
        let mut rules = kept(keep)?;
        if embeddings {
            for role in [Role::Embedding, Role::Head] {
                rules.push(Rule { name: None, role: Some(role), scheme: Some(scheme), prune: None });
            }
        }
        rules.push(Rule::scheme(scheme));
        Ok(Self { rules, ..Self::default() })
    }

    /// The recipe of a conversion: numbers stay as they are stored, but for a float that plain ones are cast to, and for
    /// quantized weights, which are unpacked if `unpack`.
    pub fn conversion(cast: Option<Scheme>, unpack: bool) -> Self {
        Self {
            rules: cast.map(Rule::scheme).into_iter().collect(),
            quantized: if unpack { Quantized::Unpack } else { Quantized::Keep },
            ..Self::default()
        }
    }

    /// Whether this is a conversion: what the input says of how it was made stays true.
    pub fn is_conversion(&self) -> bool {
        self.quantized != Quantized::Refuse
    }

    /// The recipe that stores everything as it is, for pruning alone.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn as_stored(keep: &[String]) -> Result<Self> {
        let mut rules = kept(keep)?;
        rules.push(Rule { name: None, role: None, scheme: None, prune: None });
        Ok(Self { rules, ..Self::default() })
    }

    /// The recipe with this removed, by its last rule, before that rule's scheme.
    pub fn pruned(mut self, sparsity: Sparsity) -> Self {
        if let Some(last) = self.rules.last_mut() {
            last.prune = Some(sparsity);
        }
        self
    }

    /// Whether a text is needed to choose codes.
    pub fn quantizes_by_text(&self) -> bool {
        self.blocks.method.calibrates()
    }

    /// The same without a text: codes to nearest.
    pub fn without_text(&self) -> Self {
        Self { blocks: BlockOptions { method: Method::Rtn, ..self.blocks.clone() }, ..self.clone() }
    }

    /// Whether any scheme has codes to be chosen.
    pub fn quantizes(&self) -> bool {
        self.schemes().into_iter().any(|scheme| !scheme.is_cast())
    }

    /// Whether a text is needed to prune.
    pub fn calibrates(&self) -> bool {
        let looks = |rule: &Rule| rule.prune.is_some_and(|prune| prune.method.calibrates());
        self.rules.iter().any(looks) || self.recovery.is_some()
    }

    /// Whether any rule removes weights.
    pub fn prunes(&self) -> bool {
        self.rules.iter().any(|rule| rule.prune.is_some())
    }

    /// Reads a recipe file: TOML, a list of `[[rule]]`, each with `name` (a regular expression) or `role` or both or
    /// neither, and `scheme` (a scheme's name, or `"keep"`).
    ///
    /// # Errors
    /// A file that cannot be read or says something else.
    pub fn read(file: &Path) -> Result<Self> {
        let wrong = |found: String, expected: String| Error::Recipe { file: file.to_owned(), found, expected };
        let text = std::fs::read_to_string(file).map_err(formats::Error::io(file, "read"))?;
        let parsed: Written = toml::from_str(&text).map_err(|e| {
            wrong(format!("does not parse: {}", e.message()), "[[rule]] tables with name, role and scheme".into())
        })?;
        Self::parse(parsed).map_err(|(found, expected)| wrong(found, expected))
    }

    /// The rules as a written file's metadata hold them.
    pub fn to_json(&self) -> String {
        let line = |rule: &Rule| Line {
            name: rule.name.as_ref().map(|name| name.as_str().to_owned()),
            role: rule.role.map(|role| role.name().to_owned()),
            scheme: rule.scheme.map_or("keep", Scheme::name).to_owned(),
            prune: rule.prune.map(|prune| prune.pattern.to_string()),
            prune_method: rule.prune.map(|prune| prune.method.to_string()),
            prune_scope: rule.prune.map(|prune| prune.scope.to_string()),
        };
        let written = Written { rule: self.rules.iter().map(line).collect() };
        serde_json::to_string(&written).unwrap_or_default()
    }

    /// The rules of a written file's metadata, if they are rules that this version knows.
    fn from_json(text: &str) -> Option<Self> {
        Self::parse(serde_json::from_str(text).ok()?).ok()
    }

    /// The recipe that a model's first file says it was made by.
    pub fn recorded(checkpoint: &Checkpoint) -> Option<Self> {
        Self::from_json(checkpoint.sources().first()?.metadata().get(huggingface::RULES)?)
    }

    /// Rules from their written form; else what was found and what was expected.
    fn parse(written: Written) -> Result<Self, (String, String)> {
        let mut rules = Vec::new();
        for (i, line) in written.rule.into_iter().enumerate() {
            let at = format!("rule {}", i + 1);
            let prune = line.sparsity().map_err(|e| (format!("{at}: prune"), e))?;
            let name = line.name.map(|text| Regex::new(&text)).transpose();
            let name = name.map_err(|e| (format!("{at}: name: {e}"), "a regular expression".to_owned()))?;
            let role = line.role.map(|text| {
                let known = || Role::ALL.map(Role::name).join(", ");
                Role::from_name(&text).ok_or_else(|| (format!("{at}: role `{text}`"), known()))
            });
            let scheme = match line.scheme.as_str() {
                "keep" => None,
                text => Some(
                    Scheme::from_name(text)
                        .ok_or_else(|| (format!("{at}: scheme `{text}`"), format!("keep, {}", Scheme::names())))?,
                ),
            };
            rules.push(Rule { name, role: role.transpose()?, scheme, prune });
        }
        if rules.is_empty() {
            return Err(("no rule".into(), "at least one [[rule]]".into()));
        }
        Ok(Self { rules, ..Self::default() })
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
            [] if self.prunes() || !self.parts.is_empty() => "pruned".to_owned(),
            [] => "kept".to_owned(),
            [scheme] if self.prunes() || !self.parts.is_empty() => format!("pruned-{scheme}"),
            [scheme] => scheme.name().to_owned(),
            _ => "mixed".to_owned(),
        }
    }

    /// The rules in one line, as they stand in reports and in the written file's metadata.
    pub fn describe(&self) -> String {
        let rules = self.rules.iter().map(Rule::describe);
        let kept = match self.quantized {
            Quantized::Refuse => None,
            Quantized::Keep => Some("encodings are kept".to_owned()),
            Quantized::Unpack => Some("quantized weights are unpacked".to_owned()),
        };
        let parts = Some(&self.parts).filter(|parts| !parts.is_empty()).map(ToString::to_string);
        let mut text = parts.into_iter().chain(rules).chain(kept).collect::<Vec<_>>().join("; ");
        if let Some(recovery) = &self.recovery {
            text += ", recovered";
            if let Solver::Descent { steps } = recovery.solver {
                let _ = write!(text, " in {steps} steps");
            }
            if recovery.ridge > 0.0 {
                let _ = write!(text, " with ridge {}", recovery.ridge);
            }
        }
        text + &self.blocks.describe()
    }
}

/// The rules that keep what these patterns match.
fn kept(patterns: &[String]) -> Result<Vec<Rule>> {
    let rule = |pattern: &String| {
        let name = Regex::new(pattern).map_err(|e| Error::Usage(format!("--keep {pattern}: {e}")))?;
        Ok(Rule { name: Some(name), role: None, scheme: None, prune: None })
    };
    patterns.iter().map(rule).collect()
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
        assert!(recipe.rules[1].matches(
            "embeddings.word_embeddings.weight",
            Role::Embedding,
            Some(family::Kind::Encoder)
        ));
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
        let recipe = Recipe::read(&path).unwrap();
        assert_eq!(Recipe::from_json(&recipe.to_json()).unwrap().describe(), recipe.describe());
        let text = "[[rule]]\nscheme = \"int8\"\nprune = \"0.25\"\nprune_scope = \"global\"\n";
        assert_eq!(read(text).unwrap(), "→ prune 0.25 by magnitude among all, int8");
        let recipe = Recipe::read(&path).unwrap();
        assert_eq!(Recipe::from_json(&recipe.to_json()).unwrap().describe(), recipe.describe());
        for (text, word) in [
            ("", "rule"),
            ("rule = []", "no rule"),
            ("[[rule]]\nscheme = \"int5\"", "int5"),
            ("[[rule]]\nrole = \"heads\"\nscheme = \"int8\"", "heads"),
            ("[[rule]]\nname = \"(\"\nscheme = \"int8\"", "name"),
            ("[[rule]]\nschema = \"int8\"", "schema"),
            ("[[rule]]\nscheme = \"int8\"\nprune = \"1.5\"", "1.5"),
            ("[[rule]]\nscheme = \"int8\"\nprune = \"2:4\"\nprune_scope = \"tensor\"", "within rows"),
            ("[[rule]]\nscheme = \"int8\"\nprune_method = \"magnitude\"", "without prune"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(word) && error.contains("r.toml"), "{error}");
        }
    }
}
