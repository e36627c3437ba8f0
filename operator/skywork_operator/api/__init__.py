"""The SkyworkRun resource: typed models, and the CRD generated from them."""

GROUP = "skywork.dev"
VERSION = "v1alpha1"
PLURAL = "skyworkruns"
KIND = "SkyworkRun"
