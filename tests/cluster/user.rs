//! Someone whom an API server knows: their kubeconfig, a client for them, and kubectl in their name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::pki::Pair;
use crate::program::{Output, run};

/// How long kubectl may take.
const KUBECTL: Duration = Duration::from_secs(30);

pub(crate) struct User {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
}

/// Where an API server serves, and what its users need to talk with it.
#[derive(Clone, Copy)]
pub(crate) struct Door<'a> {
    pub(crate) address: &'a str,
    /// Holds `ca.crt`; users' files go there.
    pub(crate) scratch: &'a Path,
    pub(crate) programs: &'a Path,
}

impl User {
    pub(crate) fn with_certificate(door: Door<'_>, name: &str, pair: &Pair) -> User {
        let file = |end: &str, text: &str| {
            let path = door.scratch.join(format!("{name}.{end}"));
            fs::write(&path, text).unwrap();
            path
        };
        let (certificate, key) = (file("crt", &pair.certificate), file("key", &pair.key));
        User::known_by(door, name, &json!({"client-certificate": certificate, "client-key": key}))
    }

    pub(crate) fn with_token(door: Door<'_>, name: &str, token: &str) -> User {
        User::known_by(door, name, &json!({ "token": token }))
    }

    fn known_by(door: Door<'_>, name: &str, proof: &Value) -> User {
        let kubeconfig = door.scratch.join(format!("{name}.kubeconfig"));
        let ca = door.scratch.join("ca.crt");
        let content = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": door.address, "certificate-authority": ca}}],
            "users": [{"name": name, "user": proof}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        });
        fs::write(&kubeconfig, content.to_string()).unwrap();
        User { kubeconfig, kubectl: door.programs.join("kubectl") }
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Their configuration. Inside of a runtime only.
    pub(crate) async fn config(&self) -> Config {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        // Whatever the environment says: the server is on this machine.
        config.proxy_url = None;
        config
    }

    /// A client in their name. Inside of a runtime only.
    pub(crate) async fn client(&self) -> Client {
        Client::try_from(self.config().await).unwrap()
    }

    /// Runs kubectl.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_reads(arguments, "")
    }

    /// Runs kubectl with something to read on stdin.
    pub(crate) fn kubectl_reads(&self, arguments: &[&str], stdin: &str) -> Output {
        let mut command = Command::new(&self.kubectl);
        // It keeps what it has learned of a server, by the server's address: ports come again.
        let cache = self.kubeconfig.with_extension("cache");
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).env("KUBECACHEDIR", cache);
        command.env("NO_PROXY", "*").env("no_proxy", "*");
        run(command, stdin, KUBECTL).unwrap()
    }

    /// Applies manifests, and says what became of each.
    pub(crate) fn apply(&self, manifests: &str) -> String {
        self.kubectl_reads(&["apply", "--server-side", "-f", "-"], manifests).success()
    }
}
