//! A model's chat template: Jinja that turns messages into a prompt. It comes with the model, so it is untrusted: it runs with
//! a bounded number of steps and reaches nothing but its arguments.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, context};
use regex::Regex;
use serde_json::Value;

use super::companions::{Companion, Companions};
use super::{Error, Result};

/// Steps that a template may take. Real ones take some hundred for each message.
const FUEL: u64 = 1_000_000;

/// A chat template, and the tokens that it may name.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    /// The file that it is from.
    file: PathBuf,
    source: String,
    /// The text of the token that begins a text.
    bos: Option<String>,
    /// The text of the token that ends one.
    eos: Option<String>,
}

impl ChatTemplate {
    /// The model's template: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (of several the one named
    /// `default`).
    ///
    /// # Errors
    /// A model without one, or a file that cannot be read.
    pub fn read(companions: &Companions, model: &Path) -> Result<Self> {
        let tokenizer_config = companions.file("tokenizer_config.json");
        let config: Value = tokenizer_config.map(Companion::json).transpose()?.unwrap_or_default();
        let token = |name: &str| {
            let token = config.get(name)?;
            token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
        };
        let (bos, eos) = (token("bos_token"), token("eos_token"));
        if let Some(file) = companions.file("chat_template.jinja") {
            return Ok(Self { file: file.path().to_owned(), source: file.text()?, bos, eos });
        }
        let named = |list: &Vec<Value>| {
            let default = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))?;
            default.get("template")?.as_str().map(str::to_owned)
        };
        let source = match config.get("chat_template") {
            Some(Value::String(source)) => Some(source.clone()),
            Some(Value::Array(list)) => named(list),
            _ => None,
        };
        match (source, tokenizer_config) {
            (Some(source), Some(file)) => Ok(Self { file: file.path().to_owned(), source, bos, eos }),
            _ => Err(Error::Companion {
                file: model.to_owned(),
                found: "no chat template".into(),
                expected: "chat_template.jinja or a chat_template in tokenizer_config.json".into(),
                next: "A base model has none: leave out --chat".into(),
            }),
        }
    }

    /// The text of the token that ends a turn, if the tokenizer's config names one.
    pub fn eos(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// The prompt that has the model answer one message of a user.
    ///
    /// # Errors
    /// A template that does not parse, fails, or takes too many steps.
    pub fn render(&self, message: &str) -> Result<String> {
        let wrong = |e: minijinja::Error| Error::Companion {
            file: self.file.clone(),
            found: match e.kind() {
                ErrorKind::OutOfFuel => format!("a chat template that takes more than {FUEL} steps"),
                _ => format!("a chat template that fails ({e})"),
            },
            expected: "a Jinja template as transformers renders it".into(),
            next: "Leave out --chat and give the whole prompt".into(),
        };
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // As transformers sets Jinja up.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(wrong)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let messages = [context! { role => "user", content => message }];
        let values = context! {
            messages, add_generation_prompt => true, bos_token => self.bos.as_deref(), eos_token => self.eos.as_deref(),
        };
        environment.render_str(&without_marks(&self.source), values).map_err(wrong)
    }
}

/// transformers' own block, which marks what the model is trained to say, stands for what is in it.
fn without_marks(source: &str) -> Cow<'_, str> {
    let tag = |word: &str| Regex::new(&format!(r"(\{{%[-+]?\s*){word}(\s*[-+]?%\}})"));
    let (Ok(begin), Ok(end)) = (tag("generation"), tag("endgeneration")) else { return source.into() };
    let opened = begin.replace_all(source, "${1}if true${2}");
    end.replace_all(&opened, "${1}endif${2}").into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let (bos, eos) = (Some("<s>".into()), Some("</s>".into()));
        ChatTemplate { file: "t.jinja".into(), source: source.into(), bos, eos }
    }

    #[test]
    fn a_template_renders_as_transformers_renders_it() {
        let source = "{{ bos_token }}\n{%- for message in messages %}\n    {%- if message['role'] not in ['user'] %}\n        {{- raise_exception('no') }}\n    {% endif %}\n<|{{ message.role }}|>\n{{ message['content'].strip() + eos_token }}\n{% endfor %}\n{% if add_generation_prompt %}\n<|assistant|>\n{% endif %}\n";
        assert_eq!(template(source).render(" Hi ").unwrap(), "<s><|user|>\nHi</s>\n<|assistant|>\n");
    }

    #[test]
    fn marks_of_what_is_trained_are_no_part_of_the_prompt() {
        let source = "{% for message in messages %}\n  {%- generation -%}\n  {{ message.content }}\n  {% endgeneration %}\n{% endfor %}";
        assert_eq!(template(source).render("Hi").unwrap(), "Hi\n");
    }

    #[test]
    fn bad_templates_are_errors() {
        for (source, word) in [
            ("{% for x in %}", "syntax"),
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{% for i in range(9000) %}{% for j in range(9000) %}{{ i }}{% endfor %}{% endfor %}", "1000000 steps"),
            ("{% include '/etc/passwd' %}", "include"),
            ("{{ 'x' * 9999999999 }}", "1000000 steps"),
            (
                "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
                "1000000 steps",
            ),
            ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
            ("{% for i in range(1000000000) %}{{ i }}{% endfor %}", "too many elements"),
        ] {
            let error = template(source).render("x").unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("t.jinja"), "{error}");
        }
    }
}
